"""What a figure of perplexity against bits holds: its lines, their looks and the same in words. Pure.

Colours are Okabe and Ito's, safe for colour-blind readers; the marker repeats the method, the line style tells group
sizes, lanes and variants apart.
"""

import math
from dataclasses import dataclass
from itertools import filterfalse

from orchestrator.report import text
from orchestrator.report.pivots import Entry, ModelRows, Pivot, Row

LineStyle = str | tuple[int, tuple[int, ...]]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[LineStyle, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MAX_LINES = 16


@dataclass(frozen=True)
class Series:
    """One line of a figure: what is drawn of one row, at x = true bits per weight, y = mean over seeds.

    points: (nominal bits, entry); bits ascend.
    """

    label: str
    colour: str
    hollow: bool
    marker: str
    line: LineStyle
    points: tuple[tuple[int, Entry], ...]


@dataclass(frozen=True)
class Panel:
    """The lines of one figure. baselines: variant -> 16-bit entry. note: what is not drawn; '' when everything is."""

    name: str
    note: str
    baselines: dict[str, Entry]
    series: tuple[Series, ...]


def panels(pivot: Pivot, model: ModelRows) -> list[Panel]:
    """One panel for a model; one for each group size, lane and variant when there are too many lines for one.

    Where lanes share a figure, a line that is another lane's very own is drawn once.
    """
    parts: dict[str, list[Row]] = {}
    crowded = sum(map(_has_line, model.rows)) > MAX_LINES
    for row in model.rows if crowded else filterfalse(_is_drawn_elsewhere, model.rows):
        words = _words(pivot, row) if crowded else []
        parts.setdefault(", ".join([model.model, *words]), []).append(row)
    return [
        Panel(name, _note(pivot, rows), model.baselines, _series(pivot, rows))
        for name, rows in parts.items()
        if any(map(_has_line, rows))
    ]


def has_point(entry: Entry) -> bool:
    """Whether an entry can be drawn: a finite value whose true bits are known."""
    return entry.mean is not None and math.isfinite(entry.mean) and entry.bits_per_weight is not None


def in_words(panel: Panel) -> str:
    """The numbers of the figure, for who cannot see it."""
    parts = [
        f"16-bit {variant}: {text.number(e.mean, 2)}".replace(" :", ":")
        for variant, e in panel.baselines.items()
        if e.mean is not None
    ]
    for one in panel.series:
        shown = [f"{bits} bits {text.number(e.mean, 2)}" for bits, e in one.points if e.mean is not None]
        parts.append(f"{one.label}: {', '.join(shown)}")
    return "; ".join(parts) + "."


def _note(pivot: Pivot, rows: list[Row]) -> str:
    """What was asked for and has no point; the table says why."""
    parts = []
    for row in rows:
        absent = [f"{b}" for b, e in row.entries.items() if e.num_cells and not has_point(e)]
        if absent:
            parts.append(f"{' '.join([row.method, *_words(pivot, row)])} {', '.join(absent)} bits")
    return f"Not drawn, see the table: {'; '.join(parts)}." if parts else ""


def _series(pivot: Pivot, rows: list[Row]) -> tuple[Series, ...]:
    """Colour and marker name the method, the same in every figure; the line style names the rest of the row.

    From the ninth method on colours come again, with hollow markers.
    """
    methods = list(dict.fromkeys(row.method for model in pivot.models for row in model.rows))
    rests = list(dict.fromkeys(map(_rest, rows)))
    series = []
    for row in filter(_has_line, rows):
        i = methods.index(row.method)
        words = _words(pivot, row) if len(rests) > 1 else []
        series.append(
            Series(
                label=" ".join([row.method, *words]),
                colour=COLOURS[i % len(COLOURS)],
                hollow=i >= len(COLOURS),
                marker=MARKERS[i % len(MARKERS)],
                line=LINES[rests.index(_rest(row)) % len(LINES)],
                points=tuple((bits, row.entries[bits]) for bits in pivot.bits),
            )
        )
    return tuple(series)


def _rest(row: Row) -> tuple[int | None, str, str]:
    return (row.group_size, row.lane, row.variant)


def _words(pivot: Pivot, row: Row) -> list[str]:
    size = "per row" if row.group_size is None else f"g{row.group_size}"
    named = {"group_size": size, "lane": row.lane, "variant": row.variant}
    return [word for attribute, word in named.items() if word and pivot.distinct(attribute) > 1]


def _is_drawn_elsewhere(row: Row) -> bool:
    """Whether all its points are those of another lane's line."""
    return _has_line(row) and all(entry.same_as for entry in row.entries.values() if has_point(entry))


def _has_line(row: Row) -> bool:
    return any(map(has_point, row.entries.values()))
