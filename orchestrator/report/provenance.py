"""What each cell really got: counts, warnings, failures, engines, cost. Pure; cells as `columns.normalise` returns."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from orchestrator.next_step import NEXT_STEPS
from orchestrator.report import text
from orchestrator.report.columns import BASELINE
from orchestrator.report.lanes import in_every_lane
from orchestrator.report.tables import Mark, Section, Table, TextCell, bare

STATUSES = ("SUCCEEDED", "FAILED", "PENDING", "RUNNING", "CANCELLED", "NOT_APPLICABLE", "NOT_IMPLEMENTED")
OPEN = ("PENDING", "RUNNING", "CANCELLED")
LEFT_OUT = ("NOT_APPLICABLE", "NOT_IMPLEMENTED")
UNKNOWN = "-"
ATTEMPT_COLUMNS = ("label", "number", "outcome", "stage", "began", "seconds", "message")


def headline(cells: pd.DataFrame) -> list[tuple[str, int]]:
    """(what, how many): cells, succeeded, failed, degraded, then the other statuses that occur."""
    counts = {status: int((cells["status"] == status).sum()) for status in STATUSES}
    head = [("cells", len(cells)), ("succeeded", counts.pop("SUCCEEDED")), ("failed", counts.pop("FAILED"))]
    head.append(("degraded", len(_degraded(cells))))
    return head + [(status.replace("_", " ").lower(), count) for status, count in counts.items() if count]


def warnings(cells: pd.DataFrame) -> list[str]:
    """What makes numbers in one table incomparable or incomplete; empty when nothing does."""
    return [*_calibration_warnings(cells), *_engine_warnings(cells), *_open_warnings(cells)]


def degraded_table(cells: pd.DataFrame) -> Table | None:
    """Which cells got something else than their label says, and what."""
    columns = (("cells", False), ("what they got", False))
    rows = [(labels, bare(what)) for labels, (what,) in _grouped(_degraded(cells), ["degraded"])]
    return _plain("Degraded", columns, rows)


def failure_table(cells: pd.DataFrame) -> Table | None:
    """Failures by kind and message, with what to do about the kind."""
    columns = (("cells", False), ("kind", False), ("message", False), ("next", False))
    failed = cells[cells["status"] == "FAILED"].sort_values("failure_kind", kind="stable")
    rows = [
        (labels, TextCell(marks=(Mark(kind, "bad"),)), bare(message), bare(_next_step(kind)))
        for labels, (kind, message) in _grouped(failed, ["failure_kind", "failure_message"])
    ]
    return _plain("Failed", columns, rows)


def attempts_table(attempts: pd.DataFrame) -> Table | None:
    """Every attempt at the cells that were tried more than once. attempts: `ATTEMPT_COLUMNS`, in their order."""
    columns = (("attempt", False), ("ended", False), ("began", False), ("s", True), ("message", False))
    sections = []
    for label, tries in attempts.groupby("label", sort=False):
        if len(tries) == 1:
            continue
        rows = tuple(
            (
                bare(str(one["number"])),
                TextCell(marks=(_mark(one),)),
                bare(str(one["began"])),
                bare(_number(one["seconds"], 0)),
                bare(_text(one["message"])),
            )
            for _, one in tries.iterrows()
        )
        sections.append(Section(str(label), rows))
    return Table("Attempts at cells that were tried more than once", columns, tuple(sections)) if sections else None


def _mark(one: "pd.Series[Any]") -> Mark:
    """How an attempt ended, and in which stage if it failed."""
    tone = "quiet" if one["outcome"] in STATUSES else "bad"
    return Mark(f"{one['outcome']} in {one['stage']}" if one["stage"] else str(one["outcome"]), tone)


def _next_step(kind: str) -> str:
    return next((step for known, step in NEXT_STEPS.items() if known == kind), UNKNOWN)


def left_out_table(cells: pd.DataFrame) -> Table | None:
    """Cells that cannot be run, with the reason: holes of the method or of ours."""
    columns = (("cells", False), ("status", False), ("reason", False))
    left_out = cells[cells["status"].isin(LEFT_OUT)]
    rows = [
        (labels, bare(status), bare(reason))
        for labels, (status, reason) in _grouped(left_out, ["status", "failure_message"])
    ]
    return _plain("Not run", columns, rows)


def calibration_table(cells: pd.DataFrame) -> Table | None:
    """Seeds and calibration tokens of each model and lane; one line per distinct hash."""
    columns = (("model", False), ("lane", False), ("calibration", False), ("seeds", False), ("methods", False))
    calibrated = in_every_lane(cells[cells["calibration_hash"].notna()])
    rows = []
    for key, group in calibrated.groupby(["model", "lane", "calibration_hash"], sort=False):
        model, lane, digest = map(str, key)
        seeds = _listed(sorted(group["seed"].unique()))
        rows.append(tuple(map(bare, (model, lane, text.short_hash(digest), seeds, _listed(group["method"].unique())))))
    return _plain("Calibration tokens", columns, rows)


def engine_table(cells: pd.DataFrame) -> Table | None:
    """Which engine scored what, and why."""
    columns = (("engine", False), ("weights", False), ("reason", False), ("models", False), ("cells", True))
    rows = []
    for key, group in cells.groupby(["engine", "weight_format", "engine_reason"], sort=False, dropna=False):
        engine, weights, reason = map(_text, key)
        if engine == UNKNOWN:
            continue
        rows.append(tuple(map(bare, (engine, weights, reason, _listed(group["model"].unique()), str(len(group))))))
    return _plain("Engines", columns, rows)


def cost_table(cells: pd.DataFrame) -> Table | None:
    """Every cell: size and time, and how many linears needed no calibration of their own."""
    columns = (
        ("cell", False),
        ("status", False),
        ("bits per weight", True),
        ("checkpoint MiB", True),
        ("quantize s", True),
        ("shared statistics", True),
        ("evaluate s", True),
        ("peak GiB", True),
        ("attempts", True),
    )
    rows = [
        (
            bare(cell["label"]),
            bare(cell["status"]),
            bare(_number(cell["bits_per_weight"], 3)),
            bare(_number(cell["checkpoint_bytes"] / 2**20, 1)),
            bare(_number(cell["quantize_seconds"], 1)),
            bare(_number(cell["shared_statistics"], 0)),
            bare(_number(cell["evaluate_seconds"], 1)),
            bare(_number(cell["peak_memory_gib"], 2)),
            bare(_number(cell["attempt"], 0)),
        )
        for _, cell in cells.iterrows()
    ]
    return _plain("Every cell: size and time", columns, rows)


def _calibration_warnings(cells: pd.DataFrame) -> Iterable[str]:
    """The unified lane promises one calibration-token hash for all methods of a model (and seed)."""
    compared = cells[(cells["lane"] == "unified") & (cells["method"] != BASELINE) & cells["calibration_hash"].notna()]
    for (model, seed), group in compared.groupby(["model", "seed"], sort=False):
        if group["calibration_hash"].nunique() > 1:
            by_hash = group.groupby("calibration_hash", sort=False)["method"].unique()
            shown = "; ".join(f"{text.short_hash(str(h))} for {_listed(methods)}" for h, methods in by_hash.items())
            yield (
                f"Methods of {model} (lane unified, seed {seed}) saw different calibration tokens: {shown}. "
                f"Their numbers are not a fair comparison."
            )


def _engine_warnings(cells: pd.DataFrame) -> Iterable[str]:
    for model, group in cells[cells["status"] == "SUCCEEDED"].groupby("model", sort=False):
        if group["engine"].nunique() > 1:
            by_engine = group.groupby("engine", sort=False)["method"].unique()
            shown = "; ".join(f"{engine} for {_listed(methods)}" for engine, methods in by_engine.items())
            yield f"Cells of {model} were scored by different engines: {shown}. Gaps of rounding size mean nothing."


def _open_warnings(cells: pd.DataFrame) -> Iterable[str]:
    counts = {status: int((cells["status"] == status).sum()) for status in OPEN}
    if any(counts.values()):
        shown = ", ".join(f"{count} {status.lower()}" for status, count in counts.items() if count)
        yield f"The sweep is not finished: {shown}. The tables hold what is there so far."


def _degraded(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["degraded"].notna()]


def _grouped(cells: pd.DataFrame, columns: list[str]) -> Iterable[tuple[TextCell, tuple[str, ...]]]:
    """(the labels, the values they share) for each distinct combination of `columns`, in order of appearance."""
    for key, group in cells.groupby(columns, sort=False, dropna=False):
        yield TextCell(tuple(map(str, group["label"]))), tuple(map(_text, key))


def _plain(title: str, columns: tuple[tuple[str, bool], ...], rows: Sequence[tuple[TextCell, ...]]) -> Table | None:
    return Table(title, columns, (Section(None, tuple(rows)),)) if rows else None


def _text(value: object) -> str:
    return UNKNOWN if value is None or value != value else str(value)


def _number(value: float, decimals: int) -> str:
    return UNKNOWN if pd.isna(value) else text.amount(value, decimals)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
