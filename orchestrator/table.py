"""Cells and what the storage says of them, as the rows of cells.csv."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.averages import averages, members
from orchestrator.cell import Cell, CellStatus
from orchestrator.history import history
from orchestrator.report.columns import COLUMNS
from orchestrator.report.provenance import ATTEMPT_COLUMNS
from orchestrator.shapes import modality, structure
from orchestrator.storage import Attempt, CellState, Storage
from workers.api import EvaluateResult, Manifest
from workers.files import replace
from workers.task_files import image_tasks

# pandas makes floats of them beside a gap
INTEGERS = ("bits", "group_size", "seed", "attempt", "checkpoint_bytes", "shared_statistics")


def cells_table(
    cells: list[Cell], states: dict[str, CellState], storage: Storage, run_ids: dict[str, str]
) -> pd.DataFrame:
    """One row per cell: `COLUMNS`, then the metrics in the suite's order: texts, tasks, averages.

    run_ids: attempt -> MLflow run.
    """
    checkpoints = {key: _of_checkpoint(storage.manifest(key)) for key in {cell.quantize_key for cell in cells}}
    rows = [_row(cell, states[cell.key], checkpoints[cell.quantize_key], run_ids) for cell in cells]
    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))
    return pd.DataFrame(rows, columns=[*COLUMNS, *metrics])


def attempts_table(cells: list[Cell], states: dict[str, CellState]) -> pd.DataFrame:
    """One row per attempt: `ATTEMPT_COLUMNS`; cells in the order of the grid, their attempts oldest first."""
    rows = [
        (
            cell.label,
            attempt.number,
            attempt.outcome,
            attempt.stage,
            f"{attempt.started:%Y-%m-%d %H:%M:%S}",
            attempt.seconds,
            attempt.message,
        )
        for cell in cells
        for attempt in history(states[cell.key])
    ]
    return pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Replace the file in one step."""
    replace(path, table.astype(dict.fromkeys(INTEGERS, "Int64")).to_csv(index=False))


def _row(cell: Cell, state: CellState, checkpoint: dict[str, Any], run_ids: dict[str, str]) -> dict[str, Any]:
    config, last = cell.config, state.last
    row: dict[str, Any] = {
        "cell_key": cell.key,
        "label": cell.label,
        "model": cell.model.name,
        "architecture": cell.model.architecture,
        "structure": structure(cell.shape),
        "modality": modality(cell.shape),
        "method": config.method.name,
        "category": config.method.category,
        "bits": config.scheme.bits,
        "group_size": config.scheme.group_size,
        "seed": config.seed,
        "lane": config.lane.name,
        "also_in_lane": ", ".join(cell.other_lanes) or None,
        "suite": config.suite.name,
        "image_tasks": ", ".join(image_tasks(config.suite)) or None,
        "status": state.status.value,
        "engine": cell.engine.name,
        "engine_reason": cell.engine.reason,
        "weight_format": cell.engine.weight_format,
        "attempt": last.number if last else None,
        "mlflow_run_id": run_ids.get(last.name) if last else None,
        "averages": members(config.suite.averages),
    }
    if state.status in (CellStatus.NOT_APPLICABLE, CellStatus.NOT_IMPLEMENTED):
        row["failure_message"] = cell.support_reason
    row |= checkpoint
    if last is not None:
        row |= _of_attempt(last, checkpoint, config.suite.averages)
    return row


def _of_checkpoint(manifest: Manifest | None) -> dict[str, Any]:
    """What a row takes from a manifest, which itself is too large to keep for every cell."""
    if manifest is None:
        return {}
    return {
        "calibration_hash": manifest.calibration_hash,
        "bits_per_weight": manifest.bits_per_weight,
        "checkpoint_bytes": manifest.checkpoint_bytes,
        "quantize_seconds": manifest.seconds,
        "shared_statistics": sum(report.shared_statistics for report in manifest.layer_reports),
        "peak_memory_gib": manifest.peak_memory_gib,
        "degraded": degradation(manifest),
    }


def degradation(manifest: Manifest) -> str:
    """What linears got that differs from the label, the first of each kind named; empty where nothing differs."""
    places = defaultdict[str, list[str]](list)
    for report in manifest.layer_reports:
        if report.degraded is not None:
            places[report.degraded].append(f"block {report.block} {report.linear}")
    some = {what: f" and {len(there) - 1} more" if len(there) > 1 else "" for what, there in places.items()}
    return "; ".join(f"{there[0]}{some[what]}: {what}" for what, there in places.items())


def _of_attempt(attempt: Attempt, checkpoint: dict[str, Any], asked: dict[str, list[str]]) -> dict[str, Any]:
    result = attempt.result
    if result is None:
        return {}
    if result.failure is not None:
        return {"failure_kind": result.failure.kind.value, "failure_message": result.failure.message}
    if result.evaluate is None:
        return {}
    peaks = [result.evaluate.peak_memory_gib, checkpoint.get("peak_memory_gib", 0.0)]
    return {
        "evaluate_seconds": stage_seconds(result.evaluate),
        "peak_memory_gib": max(peaks),
        **_metrics(result.evaluate, asked),
    }


def stage_seconds(result: EvaluateResult) -> float:
    """Seconds of the whole evaluate stage; entries with a dot are parts of another one."""
    return math.fsum(value for name, value in result.seconds.items() if "." not in name)


def _metrics(result: EvaluateResult, asked: dict[str, list[str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in [*result.metrics, *averages(asked, result.metrics)]:
        found[f"metric.{metric.name}"] = metric.value
        if metric.stderr is not None:
            found[f"metric.{metric.name}_stderr"] = metric.stderr
    return found
