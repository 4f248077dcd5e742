"""A sweep that is interrupted, and one whose driver is killed: both go on where they were."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.command_line import ENVIRONMENT, cells, command, ptqbench, runs
from workers.api import AttemptResult, from_json

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

# GPTQ on the shipped model takes some seconds for each of its four blocks.
SWEEP = ("sweep", "name=cut", "method=gptq", "bits=3", "engine=transformers", "suite.tasks=[]")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep at work, in a process group of its own, the first block behind it."""
    process = subprocess.Popen(
        command(*SWEEP),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoints = tmp_path / "results" / "storage" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob(".partial-*/block-00000.safetensors")):
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def history(directory: Path) -> list[str]:
    """How the attempts at the cell ended, oldest first."""
    found = sorted((directory / "results" / "storage" / "attempts").glob("*/result.json"))
    ends = [from_json(AttemptResult, path.read_text()) for path in found]
    return [str(end.failure.kind) if end.failure else end.status for end in ends]


def assert_finished(directory: Path, first: str) -> None:
    """The cell succeeded in a second attempt, which took up the blocks of the first."""
    assert cells(directory, "cut").status.tolist() == ["SUCCEEDED"]
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


def test_ctrl_c_closes_what_is_open_and_the_next_sweep_goes_on(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = workers_of(driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert history(tmp_path) == ["CANCELLED"]
    assert [run.info.status for kind in ("attempt", "sweep") for run in runs(tmp_path, kind)] == ["KILLED"] * 2
    assert ptqbench(tmp_path, *SWEEP).returncode == 0
    assert_finished(tmp_path, "CANCELLED")


def test_a_killed_driver_s_attempts_are_closed_by_the_next_which_goes_on(
    driver: subprocess.Popen[str], tmp_path: Path
) -> None:
    workers = workers_of(driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1]  # no worker goes on writing beside the next driver's
    finished = ptqbench(tmp_path, *SWEEP)
    assert finished.returncode == 0, finished.stderr
    assert "an earlier driver went down" in finished.stdout
    assert_finished(tmp_path, "WORKER_LOST")


def test_a_second_driver_is_refused_while_the_first_is_at_work(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    second = ptqbench(tmp_path, *SWEEP)
    assert second.returncode == 3
    assert f"process {driver.pid}" in second.stderr
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=60) == 130
