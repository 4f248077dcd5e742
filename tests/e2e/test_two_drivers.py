"""Two sweeps of different names over one storage at the same time: what both want is done once, and both have it."""

import subprocess
from pathlib import Path

import pytest

from tests.e2e.command_line import ENVIRONMENT, cells, command, runs, write_tokens
from tests.workers.tiny_requests import write_llama
from workers.api import AttemptResult, from_json

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


def test_two_sweeps_at_once_share_checkpoints_and_cells(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "sound", num_hidden_layers=6)
    given = ["model=hf", f"model.repo={model}", "method=gptq", "bits=3,4", *write_tokens(tmp_path)]
    suites = [value.replace("suite.sequence_length=64", "suite.sequence_length=64,32") for value in given]
    drivers = {
        name: subprocess.Popen(
            command("sweep", f"name={name}", *grid),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, grid in (("one", given), ("two", suites))
    }
    said = {name: driver.communicate(timeout=500) for name, driver in drivers.items()}
    assert [driver.returncode for driver in drivers.values()] == [0, 0], said

    storage = tmp_path / "results" / "storage"
    assert len([path for path in (storage / "checkpoints").iterdir() if not path.name.startswith(".")]) == 2
    attempts = {
        path.parent.name: from_json(AttemptResult, path.read_text())
        for path in (storage / "attempts").glob("*/result.json")
    }
    assert len(attempts) == len(list((storage / "attempts").iterdir()))
    assert [result.status for result in attempts.values()] == ["SUCCEEDED"] * 4  # one for each cell, by whichever sweep
    assert sorted(name.partition("-")[2] for name in attempts) == ["001"] * 4
    made = [result.quantize_key for result in attempts.values() if result.quantize is not None]
    assert len(made) == len(set(made)) == 2  # each checkpoint by one attempt; who shares it has found it there

    one, two = cells(tmp_path, "one"), cells(tmp_path, "two")
    assert list(one.status) == ["SUCCEEDED"] * 2 and list(two.status) == ["SUCCEEDED"] * 4
    shared = two[two.cell_key.isin(one.cell_key)].set_index("cell_key")
    metrics = [column for column in one.columns if column.startswith("metric.")]
    assert len(shared) == 2 and one.set_index("cell_key")[metrics].equals(shared[metrics])
    shown = [run.data.tags["ptqbench.sweep"] for run in runs(tmp_path)]
    assert (shown.count("one"), shown.count("two")) == (2, 4)
