"""Cells -> tables of model x method by bits, as plain data. Pure.

What stands together in one entry differs in the seed only. A position without a value says why, so that no table has
an unexplained hole.
"""

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from orchestrator.report.columns import STDERR_SUFFIX
from orchestrator.report.metrics import MetricSpec

BASELINE = "none"  # the method that leaves the model in 16 bits
NOT_ASKED = "not in the sweep"
NOT_SCORED = "not scored"
WIN_DEVIATIONS = 2.0


@dataclass(frozen=True)
class Entry:
    """One position of a table: the cells that differ in the seed only.

    values: the metric of each cell that has one. stderr: mean sampling error of those, in the unit of the metric.
    missing: reason -> number of cells without a value. degraded: how many of the values are of degraded cells.
    """

    values: tuple[float, ...] = ()
    stderr: float | None = None
    bits_per_weight: float | None = None
    degraded: int = 0
    missing: tuple[tuple[str, int], ...] = ()
    best: bool = False

    @property
    def num_cells(self) -> int:
        """Cells at this position, with and without a value."""
        return len(self.values) + sum(count for _, count in self.missing)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without any value."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1 in the denominator); None with fewer than two finite values."""
        finite = all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if finite and len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One line: a method with its group size (None: per row), lane and variant, and an entry for each bits.

    variant: what tells the line from another of the same method, where another axis than the columns varies; else ''.
    """

    method: str
    category: str
    group_size: int | None
    lane: str
    variant: str
    entries: dict[int, Entry]


@dataclass(frozen=True)
class ModelRows:
    """The lines of one model. baselines: variant -> its 16-bit entry; empty when the sweep has none."""

    model: str
    architecture: str
    baselines: dict[str, Entry]
    rows: tuple[Row, ...]

    def baseline_of(self, row: Row) -> Entry:
        """The 16-bit entry `row` is compared with: of the same variant, or the only one."""
        if len(self.baselines) == 1:
            return next(iter(self.baselines.values()))
        return self.baselines.get(row.variant, Entry())


@dataclass(frozen=True)
class Pivot:
    """A table of one metric. models, and methods within one, stand in the order of the sweep; bits ascend."""

    metric: MetricSpec
    bits: tuple[int, ...]
    models: tuple[ModelRows, ...]

    def distinct(self, attribute: str) -> int:
        """How many values an attribute of the rows takes."""
        return len({getattr(row, attribute) for model in self.models for row in model.rows})


def pivot(cells: pd.DataFrame, metric: MetricSpec) -> Pivot:
    """The table of one metric. cells: as `columns.normalise` returns them."""
    cells = cells.assign(variant=variants(cells))
    quantized = cells[cells["method"] != BASELINE]
    bits = tuple(sorted(int(b) for b in quantized["bits"].unique()))
    models = []
    for model, of_model in cells.groupby("model", sort=False):
        of_baseline = of_model[of_model["method"] == BASELINE]
        baselines = {str(v): _entry(group, metric) for v, group in of_baseline.groupby("variant", sort=False)}
        rows = _mark_best(_rows(of_model[of_model["method"] != BASELINE], metric, bits), metric)
        models.append(ModelRows(str(model), str(of_model["architecture"].iloc[0]), baselines, rows))
    return Pivot(metric, bits, tuple(models))


def relative(entry: Entry, baseline: Entry, change: Callable[[float, float], float]) -> Entry:
    """Damage: each seed's value put beside the mean 16-bit value by `change(value, baseline)`.

    Without a 16-bit value the result has no values either. Marks and best stay as they are.
    """
    mean = baseline.mean
    values = () if mean is None else tuple(change(v, mean) for v in entry.values)
    return dataclasses.replace(entry, values=values)


def variants(cells: pd.DataFrame) -> pd.Series:
    """What tells apart cells that agree in model, method, bits, group size, lane and seed; '' where nothing has to.

    It is the words of a label that the labels of the others lack (its key, if none): such cells are of another axis and
    must not be averaged as if they were seeds.
    """
    found = [""] * len(cells)
    same = ["model", "method", "bits", "group_size", "lane", "seed"]
    labels, keys = cells["label"].tolist(), cells["cell_key"].tolist()
    for positions in cells.groupby(same, sort=False, dropna=False).indices.values():
        words = {int(i): re.split(r"[\s/,|\u00b7]+", str(labels[i])) for i in positions}
        shared = set.intersection(*(set(w) for w in words.values()))
        for i, own in words.items():
            if len(words) > 1:
                found[i] = " ".join(w for w in own if w not in shared) or str(keys[i])[:8]
    return pd.Series(found, index=cells.index, dtype=object)


def difference(value: float, baseline: float) -> float:
    """value - baseline, in the unit of the metric."""
    return value - baseline


def ratio(value: float, baseline: float) -> float:
    """value / baseline."""
    return value / baseline


def log_ratio(value: float, baseline: float) -> float:
    """ln(value / baseline): of perplexities, the difference of their mean negative log-likelihoods, in nats."""
    return math.log(value / baseline)


def _rows(cells: pd.DataFrame, metric: MetricSpec, bits: tuple[int, ...]) -> tuple[Row, ...]:
    order = {method: position for position, method in enumerate(cells["method"].unique())}
    rows = []
    for _, group in cells.groupby(["method", "group_size", "lane", "variant"], sort=False, dropna=False):
        first = group.iloc[0]
        rows.append(
            Row(
                method=str(first["method"]),
                category=str(first["category"]),
                group_size=None if pd.isna(first["group_size"]) else int(first["group_size"]),
                lane=str(first["lane"]),
                variant=str(first["variant"]),
                entries={b: _entry(group[group["bits"] == b], metric) for b in bits},
            )
        )
    return tuple(sorted(rows, key=lambda row: order[row.method]))


def _entry(cells: pd.DataFrame, metric: MetricSpec) -> Entry:
    if cells.empty:
        return Entry(missing=((NOT_ASKED, 0),))
    succeeded = cells["status"] == "SUCCEEDED"
    scored = cells[succeeded & cells[metric.column].notna()]
    reasons = Counter(_reason(cell) for _, cell in cells.drop(scored.index).iterrows())
    return Entry(
        values=tuple(float(v) for v in scored[metric.column]),
        stderr=_mean(scored, metric.column + STDERR_SUFFIX),
        bits_per_weight=_mean(scored, "bits_per_weight"),
        degraded=int(scored["degraded"].notna().sum()),
        missing=tuple(reasons.items()),
    )


def _mean(cells: pd.DataFrame, column: str) -> float | None:
    known = cells[column].dropna() if column in cells.columns else ()
    return sum(map(float, known)) / len(known) if len(known) else None


def _reason(cell: pd.Series) -> str:
    if cell["status"] == "SUCCEEDED":
        return NOT_SCORED
    kind = cell["failure_kind"]
    return f"FAILED: {kind}" if cell["status"] == "FAILED" and pd.notna(kind) else str(cell["status"])


def _mark_best(rows: tuple[Row, ...], metric: MetricSpec) -> tuple[Row, ...]:
    """Mark winners: within one bits, group size, lane and variant, by more than two pooled standard deviations."""
    if metric.lower_is_better is None:
        return rows
    marked = []
    for row in rows:
        rivals = [r for r in rows if r is not row and _alike(r, row)]
        entries = {
            b: dataclasses.replace(e, best=wins(e, [r.entries[b] for r in rivals], metric.lower_is_better))
            for b, e in row.entries.items()
        }
        marked.append(dataclasses.replace(row, entries=entries))
    return tuple(marked)


def _alike(one: Row, other: Row) -> bool:
    return (one.group_size, one.lane, one.variant) == (other.group_size, other.lane, other.variant)


def wins(entry: Entry, rivals: list[Entry], lower_is_better: bool) -> bool:
    """Whether `entry` beats the best rival by more than two pooled standard deviations over seeds.

    False without a rival that has a value, with fewer than two seeds on either side, and for a degraded entry: it is
    not what its label says.
    """
    sign = 1.0 if lower_is_better else -1.0
    costs = [(sign * r.mean, r) for r in rivals if r.mean is not None]
    if not costs or entry.mean is None or entry.degraded:
        return False
    cost, second = min(costs, key=lambda pair: pair[0])
    spread = pooled_deviation(entry, second)
    return spread is not None and cost - sign * entry.mean > WIN_DEVIATIONS * spread


def pooled_deviation(one: Entry, other: Entry) -> float | None:
    """The standard deviation of two entries taken together, each about its own mean; None when either has none."""
    if one.deviation is None or other.deviation is None:
        return None
    freedom, other_freedom = len(one.values) - 1, len(other.values) - 1
    squares = freedom * one.deviation**2 + other_freedom * other.deviation**2
    return math.sqrt(squares / (freedom + other_freedom))
