"""What MLflow shows of an attempt and of a sweep: a function of what the storage holds, so it can be made again."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.cell import Cell, CellStatus
from orchestrator.history import Try, ended_at, history, last_failure, started_at
from orchestrator.next_step import NEXT_STEPS, resubmit_command
from orchestrator.storage import Attempt, CellState
from orchestrator.table import degradation, stage_seconds
from workers.api import AttemptResult, Manifest

TAG_KIND = "ptqbench.kind"  # sweep | attempt
TAG_SWEEP = "ptqbench.sweep"
TAG_STORAGE = "ptqbench.storage"
TAG_ATTEMPT = "ptqbench.attempt"
NOTE = "mlflow.note.content"  # Markdown at the top of a run's page
MAX_TAG = 8000  # characters
MAX_MESSAGE = 4000
LINE_BREAK = "  \n"  # in Markdown
MAX_LISTED = 20  # failed cells in the note of a sweep
TABLES = [{"path": "layers.json", "type": "table"}]  # MLflow's evaluation view looks for these


@dataclass(frozen=True)
class RunPage:
    """One attempt as a run. texts, files: artifacts by name, made here or lying in the storage."""

    name: str
    started: float  # seconds since 1970
    ended: float
    status: CellStatus
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    texts: dict[str, str]
    files: dict[str, Path]


def attempt_page(sweep: str, cell: Cell, state: CellState, attempt: Attempt, manifest: Manifest | None) -> RunPage:
    """The page of an attempt that has ended. manifest: of the cell's checkpoint as the storage has it now."""
    result = attempt.result
    assert result is not None
    if not _had_checkpoint(result):
        manifest = None
    return RunPage(
        name=cell.label if attempt.number == 1 else f"{cell.label}, attempt {attempt.number}",
        started=started_at(attempt),
        ended=ended_at(attempt),
        status=CellStatus(result.status),
        params=_params(cell),
        metrics=_metrics(result, manifest),
        tags=_tags(sweep, cell, state, attempt, manifest),
        texts=_texts(result, manifest),
        files={
            name: path
            for name in ("cell.json", "result.json", "log.txt")
            if (path := attempt.directory / name).exists()
        },
    )


def sweep_metrics(states: Mapping[str, CellState]) -> dict[str, float]:
    """How far a sweep is. num_retried: cells with more than one attempt."""
    statuses = Counter(state.status for state in states.values())
    return {
        "num_cells": len(states),
        "num_succeeded": statuses[CellStatus.SUCCEEDED],
        "num_failed": statuses[CellStatus.FAILED],
        "num_retried": sum(len(state.attempts) > 1 for state in states.values()),
        "num_attempts": sum(len(state.attempts) for state in states.values()),
    }


def sweep_note(sweep: str, cells: Sequence[Cell], states: Mapping[str, CellState]) -> str:
    """What the page of the sweep's run says of it. Markdown, of which MLflow shows four lines until asked for more."""
    lines = []
    failed = [cell for cell in cells if states[cell.key].status is CellStatus.FAILED]
    if failed:
        lines += [f"**{len(failed)} of {len(cells)} cells have failed.** `make resubmit ARGS='name={sweep}'`", ""]
        lines += [_failed_line(cell, states[cell.key]) for cell in failed[:MAX_LISTED]]
        if len(failed) > MAX_LISTED:
            lines.append(f"- and {len(failed) - MAX_LISTED} more: `tags.ptqbench.failure_kind LIKE '%'`")
        lines.append("")
    lines.append(
        "One child run per attempt at a cell, named by the cell's label (model, method, bits, group size). Metrics are "
        "named `<task>.<metric>`; `report.html` and `cells.csv` under Artifacts compare them. Attempts after the first:"
        " `tags.ptqbench.attempt_number != '1'`; all of one cell: `tags.ptqbench.cell_key`."
    )
    return "\n".join(lines)[:MAX_TAG]


def _failed_line(cell: Cell, state: CellState) -> str:
    failure = last_failure(state)
    assert failure is not None
    message = _code(_first_line(failure.message))
    return f"- {cell.label}: **{failure.kind}** in {failure.stage}, attempt {len(state.attempts)}: {message}"


def _had_checkpoint(result: AttemptResult) -> bool:
    """Whether the attempt came as far as a finished checkpoint; one that was made later is not its own."""
    scored = result.evaluate is not None or (result.failure is not None and result.failure.stage == "evaluate")
    return scored or result.quantize is not None


def _params(cell: Cell) -> dict[str, str]:
    config = cell.config
    slots = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")
    return {
        "model": cell.model.name,
        "method": config.method.name,
        "bits": str(config.scheme.bits),
        "group_size": str(config.scheme.group_size or "row"),
        "seed": str(config.seed),
        "lane": config.lane.name,
        "calibration": config.calibration.name,
        "suite": config.suite.name,
        **{slot: _spoken(getattr(config.method, slot)) for slot in slots},
        "scheme": _spoken(config.scheme),
        "engine": cell.engine.name,
        "engine_reason": cell.engine.reason,
        "weight_format": cell.engine.weight_format,
        "dtype": cell.engine.dtype,
        "device": config.numerics.device,
        "category": config.method.category,
        "architecture": cell.model.architecture,
        "model_repo": cell.model.repo,
        "model_fingerprint": cell.model.fingerprint,
    }


def _spoken(stage: Any) -> str:
    if type(stage).__name__.startswith("No"):
        return "none"
    fields = ", ".join(f"{k}={v}" for k, v in vars(stage).items())
    return f"{type(stage).__name__}({fields})"


def _metrics(result: AttemptResult, manifest: Manifest | None) -> dict[str, float]:
    """What the suite measured first; then size, then cost."""
    quantize, evaluate = result.quantize, result.evaluate
    found: dict[str, float] = {}
    if evaluate is not None:
        for metric in evaluate.metrics:
            found[metric.name] = metric.value
            if metric.stderr is not None:
                found[f"{metric.name}_stderr"] = metric.stderr
    if manifest is not None:
        shared = sum(report.shared_statistics for report in manifest.layer_reports)
        found |= {"bits_per_weight": manifest.bits_per_weight, "checkpoint_bytes": float(manifest.checkpoint_bytes)}
        found["shared_statistics"] = float(shared)
    if quantize is not None:
        found |= {"quantize_seconds": quantize.seconds, "quantize_peak_memory_gib": quantize.peak_memory_gib}
    if evaluate is not None:
        found |= {
            "evaluate_seconds": stage_seconds(evaluate),
            "evaluate_peak_memory_gib": evaluate.peak_memory_gib,
            "canary_difference": evaluate.canary_difference,
            **{f"evaluate_seconds.{step}": value for step, value in evaluate.seconds.items()},
        }
    return found


def _tags(sweep: str, cell: Cell, state: CellState, attempt: Attempt, manifest: Manifest | None) -> dict[str, str]:
    assert attempt.result is not None
    found = {
        TAG_KIND: "attempt",
        TAG_SWEEP: sweep,
        TAG_ATTEMPT: attempt.name,
        "ptqbench.attempt_number": str(attempt.number),
        "ptqbench.cell_key": cell.key,
        "ptqbench.quantize_key": cell.quantize_key,
        "mlflow.source.name": "ptqbench sweep",
        "mlflow.source.type": "LOCAL",
    }
    failure = attempt.result.failure
    if failure is not None:
        found |= {
            "ptqbench.failure_kind": failure.kind.value,
            "ptqbench.failure_stage": failure.stage,
            "ptqbench.failure_message": failure.message[:MAX_MESSAGE],
        }
    if text := degradation(manifest) if manifest is not None else "":
        found["ptqbench.degraded"] = text[:MAX_MESSAGE]
    if manifest is not None and manifest.layer_reports:
        found["mlflow.loggedArtifacts"] = json.dumps(TABLES)
    if note := _attempt_note(sweep, cell, state, attempt):
        found[NOTE] = note
    return found


def _attempt_note(sweep: str, cell: Cell, state: CellState, attempt: Attempt) -> str:
    """What went wrong, and what next; what was tried before. Empty for a first attempt that succeeded. Markdown."""
    assert attempt.result is not None
    failure = attempt.result.failure
    earlier = [one for one in history(state) if one.number < attempt.number]
    parts = []
    if failure is not None:
        message = LINE_BREAK.join(map(_code, filter(None, failure.message[:MAX_MESSAGE].splitlines())))
        command = resubmit_command(sweep, [cell], failure.kind)
        parts += [
            f"**{failure.kind}** in {failure.stage}: {message}{LINE_BREAK}"
            f"**Next:** {NEXT_STEPS[failure.kind]}; then {_code(command)}",
            "`log.txt` under Artifacts says more.",
        ]
    if earlier:
        parts.append(f"Attempt {attempt.number}; before it:\n\n" + "\n".join(map(_earlier_line, earlier)))
    return "\n\n".join(parts)[:MAX_TAG]


def _earlier_line(one: Try) -> str:
    message = f": {_code(_first_line(one.message))}" if one.message else ""
    return f"- attempt {one.number}: {one.words}{message}"


def _first_line(message: str) -> str:
    return message.partition("\n")[0][:200]


def _code(text: str) -> str:
    """Text shown as it stands, whatever Markdown or HTML it may look like; one line of it."""
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _texts(result: AttemptResult, manifest: Manifest | None) -> dict[str, str]:
    found = {}
    if result.failure is not None and result.failure.traceback:
        found["traceback.txt"] = result.failure.traceback
    if manifest is not None:
        table = pd.DataFrame([vars(report) for report in manifest.layer_reports])
        if len(table):
            found["layers.json"] = table.to_json(orient="split", index=False)
        summary = {k: v for k, v in vars(manifest).items() if k not in ("canary", "layer_reports")}
        found["manifest.json"] = json.dumps(summary, indent=1)
    return found
