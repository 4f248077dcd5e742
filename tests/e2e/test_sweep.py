"""A small sweep of the shipped model, under Ray, vLLM and MLflow: the first time, again, changed, and elsewhere."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.e2e.command_line import ENVIRONMENT, artifacts, attempts, cells, command, ptqbench, runs

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1200)]

SWEEP = ("sweep", "name=small", "experiment=smoke", "suite.limit=40")
METHODS = ["none", "rtn", "gptq"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three cells have run. The first test looks at how; no later one removes anything of it."""
    directory = tmp_path_factory.mktemp("swept")
    first = ptqbench(directory, *SWEEP)
    assert first.returncode == 0, first.stdout + first.stderr
    return directory


def test_every_cell_succeeds_and_is_plausible(swept: Path) -> None:
    table = cells(swept, "small")
    assert table.method.tolist() == METHODS and set(table.status) == {"SUCCEEDED"}
    assert set(table.engine) == {"vllm"} and table.degraded.isna().all()
    perplexity = table.set_index("method")["metric.held_out.perplexity"]
    assert 10 < perplexity["none"] < perplexity["gptq"] < perplexity["rtn"] < 30
    assert table["metric.mini_continuation.acc"].between(0, 1).all()
    assert (table.peak_memory_gib > 0.1).all() and (table.evaluate_seconds > 0).all()


def test_mlflow_holds_a_run_for_the_sweep_and_one_for_each_cell(swept: Path) -> None:
    (sweep,) = runs(swept, "sweep")
    table = cells(swept, "small").reset_index()
    assert sweep.info.status == "FINISHED" and {"cells.csv", "report.html"} <= artifacts(swept, sweep)
    found = {run.info.run_id: run for run in runs(swept)}
    assert set(found) == set(table.mlflow_run_id) and len(found) == 3
    for row in table.itertuples():
        run = found[row.mlflow_run_id]
        assert run.info.status == "FINISHED"
        assert run.info.run_name == row.label
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert run.data.tags["ptqbench.cell_key"] == row.cell_key
        assert run.data.params["method"] == row.method
        assert {"cell.json", "result.json", "log.txt", "manifest.json"} <= artifacts(swept, run)
    perplexities = {run.info.run_id: run.data.metrics["held_out.perplexity"] for run in found.values()}
    assert perplexities == dict(zip(table.mlflow_run_id, table["metric.held_out.perplexity"], strict=True))


def test_the_report_shows_every_method(swept: Path) -> None:
    html = (swept / "results" / "small" / "report.html").read_text()
    assert all(method in html for method in METHODS) and "perplexity" in html


def test_nothing_of_a_worker_remains(swept: Path) -> None:
    checkpoints = swept / "results" / "storage" / "checkpoints"
    assert not [path.name for path in checkpoints.iterdir() if path.name.startswith(".")]


def test_a_second_run_starts_nothing(swept: Path) -> None:
    before, started = attempts(swept), time.monotonic()
    again = ptqbench(swept, *SWEEP)
    assert again.returncode == 0 and "nothing to run" in again.stdout
    assert attempts(swept) == before and len(runs(swept)) == 3
    assert time.monotonic() - started < 20


def test_a_second_run_does_not_even_import_ray(swept: Path) -> None:
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", *command(*SWEEP)[1:]],
        cwd=swept,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in listing.splitlines()}
    assert "orchestrator.run" in imported
    assert not imported & {"ray", "mlflow", "torch"}


def test_a_deleted_mlflow_is_restored_by_sync(swept: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(swept, tmp_path / "copy"))
    before = {run.data.tags["ptqbench.attempt"]: run for run in runs(swept)}
    shutil.rmtree(copy / "results" / "mlflow")
    synced = ptqbench(copy, "sync", "name=small")
    assert synced.returncode == 0, synced.stderr
    after = {run.data.tags["ptqbench.attempt"]: run for run in runs(copy)}
    assert set(after) == set(before)
    for attempt, run in after.items():
        assert run.info.status == "FINISHED" and run.info.start_time == before[attempt].info.start_time
        assert run.data.metrics == before[attempt].data.metrics and run.data.params == before[attempt].data.params
        assert artifacts(copy, run) == artifacts(swept, before[attempt])
    assert [run.info.status for run in runs(copy, "sweep")] == ["FINISHED"]
    assert set(cells(copy, "small").mlflow_run_id) == {run.info.run_id for run in after.values()}


def test_an_extended_grid_runs_only_what_is_new(swept: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(swept, tmp_path / "copy"))
    before = set(attempts(copy))
    refused = ptqbench(copy, *SWEEP, "method=none,rtn", "bits=3,4")
    assert refused.returncode == 3 and "moved or copied" in refused.stderr
    shutil.rmtree(copy / "results" / "mlflow")  # what the message says; it is a view
    more = ptqbench(copy, *SWEEP, "method=none,rtn", "bits=3,4")
    assert more.returncode == 0, more.stderr
    (new,) = set(attempts(copy)) - before
    table = cells(copy, "small")
    assert len(table) == 3 and table[table.bits == 4].cell_key.iloc[0].startswith(new.partition("-")[0])


def test_a_fresh_run_elsewhere_gives_the_same_numbers_to_the_last_digit(swept: Path, tmp_path: Path) -> None:
    fresh = ptqbench(tmp_path, *SWEEP, "method=gptq")
    assert fresh.returncode == 0, fresh.stderr
    theirs = cells(tmp_path, "small")
    ours = cells(swept, "small").loc[theirs.index]
    same = ["cell_key", "calibration_hash", "bits_per_weight", "checkpoint_bytes"]
    metrics = [column for column in map(str, ours) if column.startswith("metric.")]
    assert len(metrics) >= 4
    pd.testing.assert_frame_equal(ours[same + metrics], theirs[same + metrics], check_exact=True)
