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
SWEEP = ("sweep", "name=cut", "method=rtn,gptq", "bits=3", "engine=transformers", "suite.tasks=[]")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep at work, in a process group of its own, GPTQ's first block behind it."""
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


def results_of(directory: Path) -> dict[str, AttemptResult]:
    """The end of every attempt, by its name."""
    found = (directory / "results" / "storage" / "attempts").glob("*/result.json")
    return {path.parent.name: from_json(AttemptResult, path.read_text()) for path in found}


def gptq_history(directory: Path) -> list[str]:
    """How the attempts at the GPTQ cell ended, oldest first."""
    key = cells(directory, "cut").loc["mini-llama gptq w3"].cell_key
    tries = sorted((name, result) for name, result in results_of(directory).items() if key.startswith(name[:16]))
    return [str(result.failure.kind) if result.failure else result.status for _, result in tries]


def assert_finished(directory: Path, first: str) -> None:
    """Both cells succeeded, GPTQ in a second attempt that took up the blocks of the first."""
    table = cells(directory, "cut")
    assert set(table.status) == {"SUCCEEDED"}
    assert gptq_history(directory) == [first, "SUCCEEDED"]
    attempts = directory / "results" / "storage" / "attempts"
    key = table.loc["mini-llama gptq w3"].cell_key
    assert "resuming after block" in (attempts / f"{key[:16]}-002" / "log.txt").read_text()
    assert [run.info.status for run in runs(directory, "sweep")] == ["FINISHED"]
    ended = sorted(run.info.status for run in runs(directory) if run.data.params["method"] == "gptq")
    assert ended == sorted(["FINISHED", "KILLED" if first == "CANCELLED" else "FAILED"])


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all of them end in time."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_ctrl_c_closes_what_is_open_and_the_next_sweep_goes_on(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    helpers = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert gone(helpers, 30)
    assert gptq_history(tmp_path) == ["CANCELLED"]
    assert {run.info.status for run in runs(tmp_path) if run.data.params["method"] == "gptq"} == {"KILLED"}
    assert [run.info.status for run in runs(tmp_path, "sweep")] == ["KILLED"]
    assert ptqbench(tmp_path, *SWEEP).returncode == 0
    assert_finished(tmp_path, "CANCELLED")


def test_a_killed_driver_s_attempts_are_closed_by_the_next_which_goes_on(
    driver: subprocess.Popen[str], tmp_path: Path
) -> None:
    helpers = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert gone(helpers, 60)  # no worker goes on writing beside the next driver's
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
