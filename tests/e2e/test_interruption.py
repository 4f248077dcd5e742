"""A sweep that is interrupted, one whose driver is killed, and one that loses every process: all go on where they were,
to the numbers of a sweep that nothing happened to.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.e2e.command_line import ENVIRONMENT, cells, command, hear_ctrl_c, ptqbench, runs
from workers.api import AttemptResult, from_json
from workers.zoo import zoo_path

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

# GPTQ on the shipped model takes some seconds for each of its four blocks.
SWEEP = ("sweep", "name=cut", "method=gptq", "bits=3", "engine=transformers", "suite=text", "suite.path=held_out.txt")


def begin(directory: Path) -> subprocess.Popen[str]:
    """A sweep at work, in a process group of its own, the first block behind it. It is scored on a short text."""
    (directory / "held_out.txt").write_text(zoo_path("mini_llama/held_out.txt").read_text()[:20_000])
    process = subprocess.Popen(
        command(*SWEEP),
        cwd=directory,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    checkpoints = directory / "results" / "storage" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob(".partial-*/streams.safetensors")):
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    return process


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = begin(tmp_path)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


@dataclass
class Uninterrupted:
    """A sweep that ran to its end. second: what another driver was told meanwhile."""

    directory: Path
    pid: int
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    directory = tmp_path_factory.mktemp("uninterrupted")
    first = begin(directory)
    try:
        second = ptqbench(directory, *SWEEP)
        _, errors = first.communicate(timeout=280)
    finally:
        first.kill()
    assert first.returncode == 0, errors
    return Uninterrupted(directory, first.pid, second)


def history(directory: Path) -> list[str]:
    """How the attempts at the cell ended, oldest first."""
    found = sorted((directory / "results" / "storage" / "attempts").glob("*/result.json"))
    ends = [from_json(AttemptResult, path.read_text()) for path in found]
    return [str(end.failure.kind) if end.failure else end.status for end in ends]


def assert_finished(directory: Path, first: str, like: Path) -> None:
    """The cell succeeded in a second attempt, which took up the blocks of the first, with the numbers of `like`."""
    ours, theirs = cells(directory, "cut"), cells(like, "cut")
    assert ours.status.tolist() == ["SUCCEEDED"]
    same = ["cell_key", "calibration_hash", "bits_per_weight", "checkpoint_bytes"]
    metrics = [column for column in map(str, theirs) if column.startswith("metric.")]
    assert metrics
    pd.testing.assert_frame_equal(ours[same + metrics], theirs[same + metrics], check_exact=True)
    assert history(directory) == [first, "SUCCEEDED"]
    (log,) = (directory / "results" / "storage" / "attempts").glob("*-002/log.txt")
    assert "resuming after block" in log.read_text()
    assert [run.info.status for run in runs(directory, "sweep")] == ["FINISHED"]
    ends = {run.data.tags["ptqbench.attempt_number"]: run.info.status for run in runs(directory)}
    assert ends == {"1": "KILLED" if first == "CANCELLED" else "FAILED", "2": "FINISHED"}


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's processes that run our code. Its agents outlive a killed driver by a minute, but touch nothing of ours."""
    processes = psutil.Process(driver.pid).children(recursive=True)
    workers = [process for process in processes if "".join(process.cmdline()).startswith("ray::quantize")]
    assert workers, [process.cmdline() for process in processes]
    return workers


def test_ctrl_c_closes_what_is_open_and_the_next_sweep_goes_on(
    driver: subprocess.Popen[str], tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    workers = workers_of(driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert history(tmp_path) == ["CANCELLED"]
    assert [run.info.status for kind in ("attempt", "sweep") for run in runs(tmp_path, kind)] == ["KILLED"] * 2
    assert ptqbench(tmp_path, *SWEEP).returncode == 0
    assert_finished(tmp_path, "CANCELLED", uninterrupted.directory)


def test_a_killed_driver_s_attempts_are_closed_by_the_next_which_goes_on(
    driver: subprocess.Popen[str], tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    workers = workers_of(driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]  # no worker goes on writing beside the next driver's
    finished = ptqbench(tmp_path, *SWEEP)
    assert finished.returncode == 0, finished.stderr
    assert "an earlier driver went down" in finished.stdout
    assert_finished(tmp_path, "WORKER_LOST", uninterrupted.directory)


def test_after_the_loss_of_all_processes_at_once_the_next_sweep_goes_on(
    driver: subprocess.Popen[str], tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    processes = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    assert {"gcs_server", "raylet"} <= {process.name() for process in processes}
    for process in processes:
        process.kill()
    driver.wait()
    finished = ptqbench(tmp_path, *SWEEP)
    assert finished.returncode == 0, finished.stderr
    assert_finished(tmp_path, "WORKER_LOST", uninterrupted.directory)


def test_a_second_driver_is_refused_while_the_first_is_at_work(uninterrupted: Uninterrupted) -> None:
    assert uninterrupted.second.returncode == 3
    assert f"process {uninterrupted.pid}" in uninterrupted.second.stderr
