"""Cells that fail: what the user is told, what MLflow keeps, and what `resubmit` makes of it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.command_line import artifacts, attempts, cells, client, ptqbench, runs, write_tokens
from tests.workers.tiny_requests import write_llama

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "sound")


def test_nan_in_one_model_fails_its_cells_with_the_layer_s_name_and_no_others(sound: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(sound, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    grid = [f"model.repo={sound},{broken}", "method=rtn,gptq", "bits=3", *write_tokens(tmp_path)]
    swept = ptqbench(tmp_path, "sweep", "name=nan", "model=hf", *grid)
    assert swept.returncode == 1
    assert "make resubmit ARGS='name=nan'" in swept.stdout

    table = cells(tmp_path, "nan")
    assert dict(table.status.groupby(table.model).unique().explode()) == {"sound": "SUCCEEDED", "broken": "FAILED"}
    failed = table[table.model == "broken"]
    assert set(failed.failure_kind) == {"NUMERICAL"}
    assert failed.failure_message.str.contains("model.layers.1.mlp.up_proj.weight").all()
    assert all(message in swept.stdout for message in failed.failure_message)

    found = {run.info.run_id: run for run in runs(tmp_path)}
    for row in failed.itertuples():
        run = found[row.mlflow_run_id]
        assert run.info.status == "FAILED" and run.data.tags["ptqbench.failure_kind"] == "NUMERICAL"
        assert {"traceback.txt", "log.txt"} <= artifacts(tmp_path, run)
        trace = Path(client(tmp_path).download_artifacts(run.info.run_id, "traceback.txt", str(tmp_path))).read_text()
        assert "Traceback" in trace and "NumericalError" in trace
    assert [run.info.status for run in runs(tmp_path, "sweep")] == ["FAILED"]

    again = ptqbench(tmp_path, "sweep", "name=nan")  # a failed cell is not run again by itself
    assert again.returncode == 1 and len(attempts(tmp_path)) == 4


def test_a_cell_whose_checkpoint_was_damaged_succeeds_when_it_is_resubmitted(sound: Path, tmp_path: Path) -> None:
    grid = ["model=hf", f"model.repo={sound}", "method=rtn", "bits=3", *write_tokens(tmp_path)]
    assert ptqbench(tmp_path, "sweep", "name=first", *grid).returncode == 0
    (checkpoint,) = (tmp_path / "results" / "storage" / "checkpoints").glob("*/block-00001.safetensors")
    damaged = bytearray(checkpoint.read_bytes())
    damaged[-1] ^= 1
    checkpoint.write_bytes(damaged)

    another_suite = [value.replace("suite.sequence_length=64", "suite.sequence_length=32") for value in grid]
    failed = ptqbench(tmp_path, "sweep", "name=second", *another_suite)  # takes up the same checkpoint
    assert failed.returncode == 1
    (row,) = cells(tmp_path, "second").itertuples()
    assert row.failure_kind == "BAD_INPUT"
    assert str(checkpoint.parent) in str(row.failure_message)

    resubmitted = ptqbench(tmp_path, "resubmit", "name=second", "--failure", "BAD_INPUT")
    assert resubmitted.returncode == 0, resubmitted.stdout + resubmitted.stderr
    (row,) = cells(tmp_path, "second").itertuples()
    assert row.status == "SUCCEEDED" and row.attempt == 2
    numbers = [run for run in runs(tmp_path) if run.data.tags["ptqbench.sweep"] == "second"]
    assert {run.data.tags["ptqbench.attempt_number"]: run.info.status for run in numbers} == {
        "1": "FAILED",
        "2": "FINISHED",
    }
    status = ptqbench(tmp_path, "status", "name=second")
    assert status.returncode == 0 and "1  BAD_INPUT in evaluate" in status.stdout and "2  SUCCEEDED" in status.stdout


def test_cells_that_are_done_run_in_no_other_sweep_and_in_no_resubmission(sound: Path, tmp_path: Path) -> None:
    grid = ["model=hf", f"model.repo={sound}", "method=rtn", *write_tokens(tmp_path)]
    assert ptqbench(tmp_path, "sweep", "name=one", *grid, "bits=3,4").returncode == 0
    assert ptqbench(tmp_path, "resubmit", "name=one").returncode == 0  # nothing has failed
    assert len(attempts(tmp_path)) == 2
    second = ptqbench(tmp_path, "sweep", "name=two", *grid, "bits=4")
    assert second.returncode == 0 and "nothing to run" in second.stdout
    assert len(attempts(tmp_path)) == 2
    (row,) = cells(tmp_path, "two").itertuples()
    shown = [run for run in runs(tmp_path) if run.data.tags["ptqbench.sweep"] == "two"]
    assert [run.info.run_id for run in shown] == [row.mlflow_run_id]
    assert shown[0].info.run_name == row.Index and shown[0].info.status == "FINISHED"

    assert ptqbench(tmp_path, "sweep", "name=one", *grid, "bits=3").returncode == 0  # a smaller grid than before
    assert cells(tmp_path, "one").bits.tolist() == [3]
