"""Cells -> tables of model x method by bits, as plain data. Pure.

What stands together in one entry differs in the seed only. A position without a value says why, so that no table has
an unexplained hole.
"""

import dataclasses
import functools
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.report.columns import BASELINE, STDERR_SUFFIX
from orchestrator.report.lanes import SAME_AS, in_every_lane
from orchestrator.report.metrics import MetricSpec

NOT_ASKED = "not in the sweep"
NOT_SCORED = "not scored"
WIN_DEVIATIONS = 2.0

Record = dict[str, Any]  # one cell: column -> value


@dataclass(frozen=True)
class Entry:
    """One position of a table: the cells that differ in the seed only.

    values: the metric of each cell that has one. stderr: mean sampling error of those, in the unit of the metric.
    missing: reason -> number of cells without a value. degraded: how many of the values are of degraded cells.
    same_as: the lane in which these very cells are listed; '' unless all of them are listed elsewhere.
    """

    values: tuple[float, ...] = ()
    stderr: float | None = None
    bits_per_weight: float | None = None
    degraded: int = 0
    missing: tuple[tuple[str, int], ...] = ()
    same_as: str = ""
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
        """How many values an attribute of the rows takes: group_size, lane or variant."""
        return self._distinct[attribute]

    @functools.cached_property
    def _distinct(self) -> dict[str, int]:
        rows = [row for model in self.models for row in model.rows]
        return {name: len({getattr(row, name) for row in rows}) for name in ("group_size", "lane", "variant")}


def pivot(cells: pd.DataFrame, metric: MetricSpec) -> Pivot:
    """The table of one metric. cells: as `columns.normalise` returns them."""
    return pivots(cells, [metric])[0]


def pivots(cells: pd.DataFrame, specs: Sequence[MetricSpec]) -> list[Pivot]:
    """A table for each metric. cells: as `columns.normalise` returns them."""
    shown = in_every_lane(cells)
    found = shown.assign(variant=variants(shown)).to_dict("records")
    records = [{str(name): value for name, value in record.items()} for record in found]
    return [_pivot(records, metric) for metric in specs]


def _pivot(cells: list[Record], metric: MetricSpec) -> Pivot:
    bits = tuple(sorted({int(cell["bits"]) for cell in cells if cell["method"] != BASELINE}))
    models = []
    for (model,), of_model in _groups(cells, "model").items():
        of_baseline = [cell for cell in of_model if cell["method"] == BASELINE]
        baselines = {str(v): _entry(group, metric) for (v,), group in _groups(of_baseline, "variant").items()}
        rows = _rows([cell for cell in of_model if cell["method"] != BASELINE], metric, bits)
        models.append(ModelRows(str(model), str(of_model[0]["architecture"]), baselines, _mark_best(rows, metric)))
    return Pivot(metric, bits, tuple(models))


def _groups(cells: list[Record], *columns: str) -> dict[tuple[Any, ...], list[Record]]:
    """Cells by their values in these columns, in order of appearance; null where there is none."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for cell in cells:
        key = tuple(None if pd.isna(cell[column]) else cell[column] for column in columns)
        groups.setdefault(key, []).append(cell)
    return groups


def relative(entry: Entry, baseline: Entry, change: Callable[[float, float], float]) -> Entry:
    """Damage: each seed's value put beside the mean 16-bit value by `change(value, baseline)`.

    Without a 16-bit value the result has no values either. Marks and best stay as they are.
    """
    mean = baseline.mean
    values = () if mean is None else tuple(change(v, mean) for v in entry.values)
    return dataclasses.replace(entry, values=values)


def variants(cells: pd.DataFrame) -> pd.Series:
    """What tells apart cells that agree in model, method, bits, group size, lane and seed; '' where nothing has to.

    It is the words of a label that the labels of the others lack (its key, if none; a lane's name tells nothing): such
    cells are of another axis and must not be averaged as if they were seeds.
    """
    found = [""] * len(cells)
    same = ["model", "method", "bits", "group_size", "lane", "seed"]
    labels, keys, lanes = cells["label"].tolist(), cells["cell_key"].tolist(), set(cells["lane"])
    for positions in cells.groupby(same, sort=False, dropna=False).indices.values():
        words = {int(i): _words(str(labels[i]), lanes) for i in positions}
        shared = set.intersection(*(set(w) for w in words.values()))
        for i, own in words.items():
            if len(words) > 1:
                found[i] = " ".join(w for w in own if w not in shared) or str(keys[i])[:8]
    return pd.Series(found, index=cells.index, dtype=object)


def _words(label: str, lanes: set[str]) -> list[str]:
    return [word for word in re.split(r"[\s/,|\u00b7]+", label) if word not in lanes]


def difference(value: float, baseline: float) -> float:
    """value - baseline, in the unit of the metric."""
    return value - baseline


def ratio(value: float, baseline: float) -> float:
    """value / baseline."""
    return value / baseline


def log_ratio(value: float, baseline: float) -> float:
    """ln(value / baseline): of perplexities, the difference of their mean negative log-likelihoods, in nats."""
    return math.log(value / baseline)


def _rows(cells: list[Record], metric: MetricSpec, bits: tuple[int, ...]) -> tuple[Row, ...]:
    order = {method: position for position, method in enumerate(dict.fromkeys(cell["method"] for cell in cells))}
    rows = []
    for (method, group_size, lane, variant), group in _groups(cells, "method", "group_size", "lane", "variant").items():
        of_bits = _groups(group, "bits")
        rows.append(
            Row(
                method=str(method),
                category=str(group[0]["category"]),
                group_size=None if group_size is None else int(group_size),
                lane=str(lane),
                variant=str(variant),
                entries={b: _entry(of_bits.get((b,), []), metric) for b in bits},
            )
        )
    return tuple(sorted(rows, key=lambda row: order[row.method]))


def _entry(cells: list[Record], metric: MetricSpec) -> Entry:
    if not cells:
        return Entry(missing=((NOT_ASKED, 0),))
    scored = [cell for cell in cells if _is_scored(cell, metric)]
    others = [cell for cell in cells if not _is_scored(cell, metric)]
    return Entry(
        values=tuple(float(cell[metric.column]) for cell in scored),
        stderr=_mean(scored, metric.column + STDERR_SUFFIX),
        bits_per_weight=_mean(scored, "bits_per_weight"),
        degraded=len([cell for cell in scored if pd.notna(cell["degraded"])]),
        missing=tuple(Counter(map(_reason, others)).items()),
        same_as=_same_as(cells),
    )


def _same_as(cells: list[Record]) -> str:
    lanes = {cell[SAME_AS] for cell in cells}
    return "" if len(lanes) > 1 or pd.isna(lane := lanes.pop()) else str(lane)


def _is_scored(cell: Record, metric: MetricSpec) -> bool:
    return bool(cell["status"] == "SUCCEEDED" and pd.notna(cell[metric.column]))


def _mean(cells: list[Record], column: str) -> float | None:
    known = [float(cell[column]) for cell in cells if pd.notna(cell.get(column))]
    return sum(known) / len(known) if known else None


def _reason(cell: Record) -> str:
    if cell["status"] == "SUCCEEDED":
        return NOT_SCORED
    kind = cell["failure_kind"]
    return f"FAILED: {kind}" if cell["status"] == "FAILED" and pd.notna(kind) else str(cell["status"])


def _mark_best(rows: tuple[Row, ...], metric: MetricSpec) -> tuple[Row, ...]:
    """Mark winners: within one bits, group size, lane and variant, by more than two pooled standard deviations."""
    if metric.lower_is_better is None:
        return rows
    alike: dict[tuple[int | None, str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.group_size, row.lane, row.variant), []).append(row)
    marked = []
    for row in rows:
        rivals = [r for r in alike[row.group_size, row.lane, row.variant] if r is not row]
        entries = {
            b: dataclasses.replace(e, best=wins(e, [r.entries[b] for r in rivals], metric.lower_is_better))
            for b, e in row.entries.items()
        }
        marked.append(dataclasses.replace(row, entries=entries))
    return tuple(marked)


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
