"""cells.csv: one row per cell, its columns in their order, empty where nothing is known."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from conf.schema import LaneConf, UniformScheme
from orchestrator.cell import Cell, CellStatus
from orchestrator.report.columns import COLUMNS, normalise
from orchestrator.storage import Storage, end_attempt
from orchestrator.table import cells_table, degradation, stage_seconds, write_csv
from tests.orchestrator.hand_made import make_cell, make_config, with_bits
from workers.api import (
    AttemptResult,
    Canary,
    EvaluateResult,
    Failure,
    FailureKind,
    LayerReport,
    Manifest,
    Metric,
    to_json,
)
from workers.files import create

METRICS = [
    Metric("held_out.perplexity", 7.5, 0.25, 8, "1"),
    Metric("held_out.mean_nll", 2.0, None, 8, "nats/token"),
    Metric("piqa.acc", 0.75, 0.01, 100, "fraction"),
]
SECONDS = {"text": 1.0, "load": 4.0, "load.engine": 3.0, "perplexity": 2.0}
REPORT = LayerReport(
    0, "mlp.up_proj", "GptqRound", 3, None, 3.5, 64, 8, 0.1, 1, 0.5, 0.1, False, "damping 0.1 instead of 0.01", 1.0
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def manifest_of(cell: Cell, layers: list[LayerReport], peak_memory_gib: float = 1.5) -> Manifest:
    canary = Canary([], [], [])
    return Manifest(
        cell.quantize_key, "s", "packed", "hash", 8, 3.5, 1000, canary, layers, {}, 12.0, peak_memory_gib, {}
    )


def make_checkpoint(storage: Storage, cell: Cell, *, peak_memory_gib: float = 1.5) -> None:
    layers = [REPORT, replace(REPORT, linear="mlp.down_proj", degraded=None, shared_statistics=True)]
    manifest = manifest_of(cell, layers, peak_memory_gib)
    storage.checkpoint(cell.quantize_key).mkdir()
    (storage.checkpoint(cell.quantize_key) / "manifest.json").write_text(to_json(manifest))


def succeed(storage: Storage, cell: Cell, metrics: list[Metric]) -> str:
    evaluated = EvaluateResult(metrics, "5.19.0", "fresh", 0.0, SECONDS, peak_memory_gib=0.5)
    result = AttemptResult(cell.evaluate_key, cell.quantize_key, "SUCCEEDED", None, None, evaluated)
    attempt = storage.open_attempt(cell, storage.states([cell])[cell.key].next_number)
    create(attempt.directory / "result.json", to_json(result))
    return attempt.name


def with_averages(averages: dict[str, list[str]]) -> Cell:
    config = make_config()
    return make_cell(replace(config, suite=replace(config.suite, averages=averages)))


def table_of(storage: Storage, *cells: Cell, runs: dict[str, str] | None = None) -> pd.DataFrame:
    return cells_table(list(cells), storage.states(list(cells)), storage, runs or {})


def test_the_columns_are_the_documented_ones_in_their_order_then_the_metrics(storage: Storage) -> None:
    scored, other = make_cell(), make_cell(with_bits(2))
    succeed(storage, scored, METRICS)
    succeed(storage, other, [Metric("boolq.acc", 0.5, None, 10, "fraction")])
    assert list(table_of(storage, scored, other).columns) == [
        *COLUMNS,
        "metric.held_out.perplexity",
        "metric.held_out.perplexity_stderr",
        "metric.held_out.mean_nll",
        "metric.piqa.acc",
        "metric.piqa.acc_stderr",
        "metric.boolq.acc",
    ]
    assert list(table_of(storage).columns) == list(COLUMNS)


def test_a_row_of_a_scored_cell(storage: Storage) -> None:
    cell = make_cell()
    make_checkpoint(storage, cell)
    name = succeed(storage, cell, METRICS)
    (row,) = table_of(storage, cell, runs={name: "run-7"}).to_dict("records")
    expected = {
        "cell_key": cell.key,
        "label": "tiny gptq w3 g32",
        "model": "tiny",
        "architecture": "llama",
        "structure": "dense MHA",
        "modality": "text",
        "method": "gptq",
        "category": "compensation",
        "bits": 3,
        "group_size": 32,
        "seed": 0,
        "lane": "unified",
        "suite": "text",
        "calibration_hash": "hash",
        "status": "SUCCEEDED",
        "degraded": "block 0 mlp.up_proj: damping 0.1 instead of 0.01",
        "attempt": 1,
        "engine": "transformers",
        "engine_reason": "asked for",
        "weight_format": "dense",
        "bits_per_weight": 3.5,
        "checkpoint_bytes": 1000,
        "quantize_seconds": 12.0,
        "shared_statistics": 1,
        "evaluate_seconds": 7.0,
        "peak_memory_gib": 1.5,
        "mlflow_run_id": "run-7",
        "metric.held_out.perplexity": 7.5,
        "metric.held_out.perplexity_stderr": 0.25,
        "metric.held_out.mean_nll": 2.0,
        "metric.piqa.acc": 0.75,
        "metric.piqa.acc_stderr": 0.01,
    }
    assert {key: value for key, value in row.items() if not _empty(value)} == expected
    assert row.keys() - expected.keys() == {
        "failure_kind",
        "failure_message",
        "averages",
        "also_in_lane",
        "image_tasks",
    }


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def test_a_row_of_a_failed_cell_says_why(storage: Storage) -> None:
    cell = make_cell()
    failure = Failure("quantize", FailureKind.NUMERICAL, "layers.3: not finite, at damping 0.1")
    end_attempt(storage.open_attempt(cell, 1).directory, cell, CellStatus.FAILED, failure)
    (row,) = table_of(storage, cell).to_dict("records")
    assert (row["status"], row["failure_kind"]) == ("FAILED", "NUMERICAL")
    assert row["failure_message"] == "layers.3: not finite, at damping 0.1"


def test_the_last_attempt_is_the_one_that_counts(storage: Storage) -> None:
    cell = make_cell()
    failure = Failure("evaluate", FailureKind.ENGINE, "died")
    end_attempt(storage.open_attempt(cell, 1).directory, cell, CellStatus.FAILED, failure)
    succeed(storage, cell, METRICS)
    (row,) = table_of(storage, cell).to_dict("records")
    assert (row["status"], row["attempt"]) == ("SUCCEEDED", 2)
    assert _empty(row["failure_kind"])


@pytest.mark.parametrize("status", [CellStatus.NOT_APPLICABLE, CellStatus.NOT_IMPLEMENTED])
def test_a_row_of_what_cannot_run_has_its_reason(storage: Storage, status: CellStatus) -> None:
    (row,) = table_of(storage, make_cell(support=status)).to_dict("records")
    assert (row["status"], row["failure_message"]) == (status.value, "it cannot")
    assert _empty(row["failure_kind"]) and _empty(row["attempt"])


def test_rows_stand_in_the_order_of_the_grid(storage: Storage) -> None:
    cells = [make_cell(with_bits(bits)) for bits in (4, 2, 3)]
    succeed(storage, cells[2], METRICS)
    assert list(table_of(storage, *cells)["bits"]) == [4, 2, 3]
    assert list(table_of(storage, *cells)["status"]) == ["PENDING", "PENDING", "SUCCEEDED"]


def test_one_checkpoint_serves_all_rows_that_share_it(storage: Storage) -> None:
    config = make_config()
    cells = [make_cell(config), make_cell(replace(config, suite=replace(config.suite, limit=8)))]
    assert cells[0].quantize_key == cells[1].quantize_key
    make_checkpoint(storage, cells[0])
    assert list(table_of(storage, *cells)["bits_per_weight"]) == [3.5, 3.5]


def test_what_many_linears_got_alike_is_said_once() -> None:
    blocks = [replace(REPORT, block=block) for block in range(3)]
    other = replace(REPORT, linear="mlp.down_proj", degraded="no tokens")
    assert degradation(manifest_of(make_cell(), [*blocks, other])) == (
        "block 0 mlp.up_proj and 2 more: damping 0.1 instead of 0.01; block 0 mlp.down_proj: no tokens"
    )


def test_parts_of_a_step_are_not_counted_twice() -> None:
    assert stage_seconds(EvaluateResult([], "v", "fresh", 0.0, SECONDS)) == 7.0


def test_the_file_is_what_the_table_says_and_replaces_the_old_one_whole(storage: Storage, tmp_path: Path) -> None:
    per_row = replace(make_config(), scheme=UniformScheme(bits=4), lane=LaneConf("published", published=True))
    cells = [make_cell(), make_cell(per_row, label='with "quotes", commas')]
    make_checkpoint(storage, cells[0])
    succeed(storage, cells[0], METRICS)
    path = tmp_path / "cells.csv"
    path.write_text("old")
    write_csv(table_of(storage, *cells), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["tiny gptq w3 g32", 'with "quotes", commas']
    assert [row["group_size"] for row in rows] in (["32", ""], ["32.0", ""])
    assert rows[0]["metric.held_out.perplexity"] == "7.5"
    assert rows[1]["metric.held_out.perplexity"] == ""
    assert not list(tmp_path.glob("*.partial"))
    assert list(normalise(pd.read_csv(path))["bits"]) == [3, 4]


def test_an_average_stands_behind_its_members_and_says_them(storage: Storage) -> None:
    cell = with_averages({"two": ["piqa.acc", "boolq.acc"], "three": ["piqa.acc", "boolq.acc", "race.acc"]})
    succeed(storage, cell, [*METRICS, Metric("boolq.acc", 0.25, None, 10, "fraction")])
    table = table_of(storage, cell)
    assert list(table.columns)[-2:] == ["metric.boolq.acc", "metric.two.average"]
    (row,) = table.to_dict("records")
    assert row["metric.two.average"] == 0.5
    assert row["averages"] == "two = piqa.acc, boolq.acc; three = piqa.acc, boolq.acc, race.acc"
