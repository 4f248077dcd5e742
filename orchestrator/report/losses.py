"""What quantization cost: one method on one model at some bits, beside the same model in 16 bits. Pure.

Tables of robustness and the paper's claims are computed of these. Cells are compared where they share a protocol.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from orchestrator.report.columns import metric_columns
from orchestrator.report.metrics import Kind, MetricSpec, parse
from orchestrator.report.pivots import (
    NOT_ASKED,
    Entry,
    ModelRows,
    Pivot,
    Row,
    log_ratio,
    pivots,
    pooled_deviation,
    relative,
)

NO_BASELINE = "no 16-bit value"


@dataclass(frozen=True)
class Protocol:
    """What cells share that are compared across models. group_size: null for one group per row."""

    suite: str
    lane: str
    group_size: int | None
    variant: str

    @property
    def words(self) -> str:
        """As a heading."""
        size = "one grid per row" if self.group_size is None else f"groups of {self.group_size}"
        return ", ".join(filter(None, (f"suite {self.suite}", f"lane {self.lane}", size, self.variant)))


@dataclass(frozen=True)
class Subject:
    """The model of a cell."""

    model: str
    architecture: str
    structure: str
    modality: str


@dataclass(frozen=True)
class Loss:
    """One place of the grid, seeds together.

    lost: what each seed lost, in nats per token of perplexities and in points of accuracies; less is better, and no
    values say in `missing` why. score: the mean of the metric itself. rank: 1 for the method that lost least on this
    model at these bits under this protocol, ties sharing the mean of theirs; null without a value or another method's.
    """

    protocol: Protocol
    subject: Subject
    method: str
    category: str
    bits: int
    metric: MetricSpec
    lost: Entry
    score: float | None
    missing: str = ""
    rank: float | None = None

    @property
    def value(self) -> float | None:
        """Mean over seeds; null where there is none."""
        return self.lost.mean


def losses(cells: pd.DataFrame, metric: MetricSpec) -> list[Loss]:
    """Every place of every protocol, in the order of the sweep. cells: as `columns.normalise` returns them.

    Raises ValueError for a metric of which no loss is defined: neither a perplexity nor an accuracy.
    """
    change = _CHANGES.get(metric.kind)
    if change is None:
        raise ValueError(f"{metric.name}: a loss is defined of perplexities and accuracies")
    found: list[Loss] = []
    for suite, of_suite in cells.groupby("suite", sort=False):
        if of_suite[metric.column].notna().any():
            subjects = _subjects(of_suite)
            (table,) = pivots(of_suite.reset_index(drop=True), [metric])
            for protocol, models in _protocols(str(suite), table).items():
                found += _of_protocol(protocol, models, table, subjects, change)
    return _ranked(found)


def image_metrics(cells: pd.DataFrame) -> list[MetricSpec]:
    """The accuracy each task that shows images is led by: of its columns the first. cells: as above."""
    listed = cells["image_tasks"].dropna().str.split(", ").explode()
    specs = [parse(column) for column in metric_columns(cells)]
    found: dict[str, MetricSpec] = {}
    for spec in specs:
        if spec.kind is Kind.ACCURACY and spec.task in set(listed):
            found.setdefault(spec.task, spec)
    return list(found.values())


def gap_is_noise(one: Loss, other: Loss, deviations: float) -> bool | None:
    """Whether the means are nearer than so many pooled standard deviations over seeds; null where a side has one."""
    spread = pooled_deviation(one.lost, other.lost)
    if spread is None or one.value is None or other.value is None:
        return None
    return abs(one.value - other.value) <= deviations * spread


_CHANGES: dict[Kind, Callable[[float, float], float]] = {
    Kind.PERPLEXITY: log_ratio,
    Kind.ACCURACY: lambda value, baseline: 100 * (baseline - value),
}


def _subjects(cells: pd.DataFrame) -> dict[str, Subject]:
    columns = ["model", "architecture", "structure", "modality"]
    return {str(row[0]): Subject(*map(str, row)) for row in cells[columns].itertuples(index=False)}


def _protocols(suite: str, table: Pivot) -> dict[Protocol, list[ModelRows]]:
    """Each with the models that have a row under it."""
    found: dict[Protocol, list[ModelRows]] = {}
    for model in table.models:
        for protocol in dict.fromkeys(_protocol(suite, row) for row in model.rows):
            found.setdefault(protocol, []).append(model)
    return found


def _protocol(suite: str, row: Row) -> Protocol:
    return Protocol(suite, row.lane, row.group_size, row.variant)


def _of_protocol(
    protocol: Protocol,
    models: Sequence[ModelRows],
    table: Pivot,
    subjects: dict[str, Subject],
    change: Callable[[float, float], float],
) -> Iterable[Loss]:
    """All its methods on all its models at all its bits, whether or not the sweep asks for the place."""
    rows = {(m.model, r.method): r for m in models for r in m.rows if _protocol(protocol.suite, r) == protocol}
    methods = dict.fromkeys((row.method, row.category) for row in rows.values())
    bits = [b for b in table.bits if any(row.entries[b].num_cells for row in rows.values())]
    for model in models:
        for method, category in methods:
            row = rows.get((model.model, method))
            for b in bits:
                entry = row.entries[b] if row is not None else Entry(missing=((NOT_ASKED, 0),))
                lost = relative(entry, model.baseline_of(row), change) if row is not None else entry
                yield Loss(
                    protocol, subjects[model.model], method, category, b, table.metric, lost, entry.mean,
                    missing=_missing(entry, lost),
                )  # fmt: skip


def _missing(entry: Entry, lost: Entry) -> str:
    if lost.values:
        return ""
    reasons = [reason.replace("_", " ").lower() for reason, _ in entry.missing]
    return NO_BASELINE if entry.values else ", ".join(reasons)


def _ranked(found: list[Loss]) -> list[Loss]:
    places: dict[tuple[Protocol, Subject, int], list[float]] = {}
    for loss in found:
        if loss.value is not None:
            places.setdefault((loss.protocol, loss.subject, loss.bits), []).append(loss.value)
    return [
        loss
        if loss.value is None
        else dataclasses.replace(loss, rank=_rank(loss.value, places[loss.protocol, loss.subject, loss.bits]))
        for loss in found
    ]


def _rank(value: float, all_values: Sequence[float]) -> float | None:
    if len(all_values) == 1:
        return None
    better = sum(other < value for other in all_values)
    equal = sum(other == value for other in all_values)
    return better + (equal + 1) / 2
