"""A storage that goes in the middle of a sweep, and an empty directory that appears in its place."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.command_line import ENVIRONMENT, cells, command, ptqbench
from tests.e2e.test_interruption import SWEEP, workers_of
from workers.api import AttemptResult, from_json
from workers.zoo import zoo_path

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


def test_a_sweep_whose_storage_goes_ends_and_goes_on_once_it_is_back(tmp_path: Path) -> None:
    storage, away = tmp_path / "storage", tmp_path / "away"
    arguments = (*SWEEP, f"cluster.storage={storage}")
    (tmp_path / "held_out.txt").write_text(zoo_path("mini_llama/held_out.txt").read_text()[:20_000])
    driver = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while driver.poll() is None and not list(storage.glob("checkpoints/.partial-*/streams.safetensors")):
        time.sleep(0.1)
    assert driver.poll() is None, driver.communicate()
    workers = workers_of(driver)
    storage.rename(away)
    storage.mkdir()  # as below a file system that is not mounted any more
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 3, errors
    assert f"storage {storage}: {storage / 'id'}: No such file" in errors and "is it mounted?" in errors
    assert "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=60)[1]

    again = ptqbench(tmp_path, *arguments)
    assert again.returncode == 3 and "the one that sweep cut ran on is not there now" in again.stderr
    assert os.listdir(storage) == []  # noqa: PTH208 (hidden files too)

    storage.rmdir()
    away.rename(storage)
    back = ptqbench(tmp_path, *arguments)
    assert back.returncode == 0, back.stdout + back.stderr
    assert cells(tmp_path, "cut").status.tolist() == ["SUCCEEDED"]
    ends = [from_json(AttemptResult, path.read_text()) for path in sorted(storage.glob("attempts/*/result.json"))]
    assert [end.failure.kind if end.failure else end.status for end in ends] == ["WORKER_LOST", "SUCCEEDED"]
    (log,) = storage.glob("attempts/*-002/log.txt")
    assert "resuming after block" in log.read_text()
