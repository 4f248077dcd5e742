"""Pivots -> tables of text: what HTML and Markdown both print."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.report import text
from orchestrator.report.metrics import Kind
from orchestrator.report.pivots import Entry, ModelRows, Pivot, Row, difference, log_ratio, ratio, relative


@dataclass(frozen=True)
class Mark:
    """A short remark in a cell. tone: bad (failed), warn (degraded, partial) or quiet. anchor: the section about it."""

    text: str
    tone: str
    anchor: str | None = None


@dataclass(frozen=True)
class TextCell:
    """One cell: the main line, smaller lines under it, remarks. strong: the best of its column."""

    lines: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    strong: bool = False


@dataclass(frozen=True)
class Section:
    """Rows under a common heading; None for a table that has only one."""

    heading: str | None
    rows: tuple[tuple[TextCell, ...], ...]


@dataclass(frozen=True)
class Table:
    """A printed table. columns: (name, whether it holds numbers). The first column names the row."""

    title: str
    columns: tuple[tuple[str, bool], ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


def value_table(pivot: Pivot) -> Table:
    """The metric itself, mean +- standard deviation over seeds, with the true bits per weight under it."""

    def show(entry: Entry, baseline: Entry) -> tuple[str, ...]:
        return (_value(pivot, entry), *_bits_per_weight(entry))

    return _table(pivot, pivot.metric.name, show, (_direction(pivot), _seed_note(pivot), _best_note(pivot)))


def damage_table(pivot: Pivot) -> Table:
    """What quantization cost against the 16-bit model: a ratio and nats for perplexities, else a difference."""

    def show(entry: Entry, baseline: Entry) -> tuple[str, ...]:
        if pivot.metric.kind is not Kind.PERPLEXITY:
            return (_difference(pivot, relative(entry, baseline, difference)),)
        nats, factor = relative(entry, baseline, log_ratio), relative(entry, baseline, ratio)
        if nats.mean is None or factor.mean is None:
            return ()
        return (text.with_spread(text.signed(nats.mean, 3), nats.deviation, 3), text.times(factor.mean))

    title = f"Damage: {pivot.metric.name} against the same model in 16 bits"
    note = (
        f"First the difference of the mean negative log-likelihood, ln(perplexity / 16-bit perplexity), in nats; "
        f"then perplexity as a multiple ({text.TIMES}) of the 16-bit one. Both are means over seeds."
    )
    return _table(pivot, title, show, (note if pivot.metric.kind is Kind.PERPLEXITY else "", _best_note(pivot)))


def accuracy_table(pivot: Pivot) -> Table:
    """Accuracy in percent, with its sampling error and the difference from 16 bits in points under it."""

    def show(entry: Entry, baseline: Entry) -> tuple[str, ...]:
        smaller = []
        change = relative(entry, baseline, difference)
        if change.mean is not None:
            smaller.append(_difference(pivot, change))
        if entry.stderr is not None:
            smaller.append(f"se {text.number(100 * entry.stderr, 1)}")
        return (_value(pivot, entry), *([", ".join(smaller)] if smaller else []))

    chance = pivot.metric.chance
    known = "not known" if chance is None else f"{text.number(100 * chance, 1)} %"
    note = (
        f"Percent correct; higher is better. Chance level: {known}. se: standard error from the number of examples; "
        f"pt: points above or below the same model in 16 bits."
    )
    return _table(pivot, pivot.metric.name, show, (note, _seed_note(pivot), _best_note(pivot)))


def bare(value: str) -> TextCell:
    """A cell of one line."""
    return TextCell((value,))


def _table(pivot: Pivot, title: str, show: Callable[[Entry, Entry], tuple[str, ...]], notes: tuple[str, ...]) -> Table:
    extra = [a for a in ("group_size", "lane", "variant") if pivot.distinct(a) > 1]
    names = {"group_size": "group", "lane": "lane", "variant": "variant"}
    columns = [("method", False), *((names[a], False) for a in extra), *((f"{b} bits", True) for b in pivot.bits)]
    sections = []
    for model in pivot.models:
        rows = tuple(_row(pivot, model, row, extra, show) for row in model.rows)
        sections.append(Section(_heading(pivot, model), rows))
    return Table(title, tuple(columns), tuple(sections), tuple(n for n in notes if n))


def _row(
    pivot: Pivot, model: ModelRows, row: Row, extra: list[str], show: Callable[[Entry, Entry], tuple[str, ...]]
) -> tuple[TextCell, ...]:
    size = "row" if row.group_size is None else str(row.group_size)
    names = {"group_size": size, "lane": row.lane, "variant": row.variant or "-"}
    baseline = model.baseline_of(row)
    cells = [bare(row.method), *(bare(names[a]) for a in extra)]
    for bits in pivot.bits:
        entry = row.entries[bits]
        lines = show(entry, baseline) if entry.values else ()
        marks = _marks(pivot, entry)
        if entry.values and not lines:
            marks = (*marks, Mark("no 16-bit value", "quiet"))
        cells.append(TextCell(lines, marks, entry.best))
    return tuple(cells)


def _marks(pivot: Pivot, entry: Entry) -> tuple[Mark, ...]:
    marks = []
    if entry.degraded:
        some = "" if entry.degraded == len(entry.values) else f" {entry.degraded} of {len(entry.values)}"
        marks.append(Mark(f"degraded{some}", "warn", "degraded"))
    for reason, count in entry.missing:
        some = f"{count} of {entry.num_cells} " if count < entry.num_cells else ""
        tone, anchor = ("bad", "failures") if reason.startswith("FAILED") else ("quiet", None)
        marks.append(Mark(some + reason.replace("_", " ").lower(), tone, anchor))
    if entry.same_as:
        marks.append(Mark(f"same cell as {entry.same_as}", "quiet"))
    if _at_chance(pivot, entry):
        marks.append(Mark("at chance", "quiet"))
    return tuple(marks)


def _at_chance(pivot: Pivot, entry: Entry) -> bool:
    """Within two standard errors of guessing, or below: nothing can be concluded from such a score."""
    chance = pivot.metric.chance
    if chance is None or entry.mean is None or entry.stderr is None:
        return False
    return entry.mean - chance <= 2 * entry.stderr


def _heading(pivot: Pivot, model: ModelRows) -> str:
    if not model.baselines:
        return f"{model.model} ({model.architecture}): no 16-bit baseline in the sweep"
    shown = []
    for variant, entry in model.baselines.items():
        words = [_value(pivot, entry)] if entry.values else []
        if entry.stderr is not None and pivot.metric.kind is Kind.ACCURACY:
            words.append(f"(se {text.number(100 * entry.stderr, 1)})")
        words.extend(mark.text for mark in _marks(pivot, entry))
        shown.append(" ".join([*words, f"({variant})" if variant else ""]).strip())
    return f"{model.model} ({model.architecture}): 16-bit {', '.join(shown)}"


def _value(pivot: Pivot, entry: Entry) -> str:
    mean, deviation = entry.mean, entry.deviation
    if mean is None:
        return ""
    if pivot.metric.kind is Kind.ACCURACY:
        scaled = None if deviation is None else 100 * deviation
        return text.with_spread(text.number(100 * mean, 1), scaled, 1)
    decimals = 2 if pivot.metric.kind is Kind.PERPLEXITY else 4
    return text.with_spread(text.number(mean, decimals), deviation, decimals)


def _difference(pivot: Pivot, change: Entry) -> str:
    if change.mean is None:
        return ""
    if pivot.metric.kind is Kind.ACCURACY:
        return f"{text.signed(100 * change.mean, 1)} pt"
    return text.signed(change.mean, 4)


def _bits_per_weight(entry: Entry) -> tuple[str, ...]:
    return () if entry.bits_per_weight is None else (f"{text.number(entry.bits_per_weight, 2)} b/w",)


def _direction(pivot: Pivot) -> str:
    unit = "b/w: true bits per weight, scales and zero points included."
    return {True: "Lower is better. ", False: "Higher is better. ", None: ""}[pivot.metric.lower_is_better] + unit


def _seed_note(pivot: Pivot) -> str:
    counts = _seed_counts(pivot)
    if not counts:
        return ""
    if counts == {1}:
        return "One seed for each value: the spread is unknown, so nothing is bold and no method has won."
    low, high = min(counts), max(counts)
    seeds = str(low) if low == high else f"{low} to {high}"
    single = f"; a value without {text.PLUS_MINUS} is of one seed" if low == 1 else ""
    return f"Mean {text.PLUS_MINUS} standard deviation over {seeds} seeds{single}."


def _best_note(pivot: Pivot) -> str:
    if max(_seed_counts(pivot), default=1) == 1 or pivot.metric.lower_is_better is None:
        return ""
    extra = [name for name, a in (("group size", "group_size"), ("lane", "lane")) if pivot.distinct(a) > 1]
    alike = "model and bits" if not extra else f"model, bits, {' and '.join(extra)}"
    rule = f"better than the second of the same {alike} by more than two pooled standard deviations"
    any_best = any(e.best for m in pivot.models for r in m.rows for e in r.entries.values())
    return f"Bold: {rule}." if any_best else f"Nothing is bold: no method is {rule}."


def _seed_counts(pivot: Pivot) -> set[int]:
    return {len(e.values) for m in pivot.models for r in m.rows for e in r.entries.values() if e.values}
