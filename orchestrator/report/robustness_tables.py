"""Robustness over bits, structures and modalities as printed tables. Pure.

A section holds cells of one protocol alone: suite, lane, granularity and whatever other axis varies.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from orchestrator.report import text
from orchestrator.report.losses import Loss
from orchestrator.report.metrics import Kind
from orchestrator.report.robustness import missing, robustness, seed_counts
from orchestrator.report.tables import Mark, Section, Table, TextCell, bare

T = TypeVar("T")

IMAGES = "questions about images"
EVERY = "all"
NATS = (
    "Nats per token that the same model had fewer in 16 bits (+0.010: one percent more perplexity, +0.693: twice as "
    "much): mean over models, then the worst of them. Rank: of the methods with a value on the same model at the same "
    "bits, 1 lost least; mean, then the worst."
)
POINTS = "Questions about images: points of accuracy lost, mean over models and tasks, then the worst."


def over_bits(losses: Sequence[Loss]) -> Table | None:
    """Method by bits, over all models; null without two models that share a protocol. losses: of the leading text."""
    sections = [
        (protocol.words, found)
        for protocol, found in _by(losses, lambda loss: loss.protocol).items()
        if _distinct(found, lambda loss: loss.subject.model) > 1
    ]
    return _table("Robustness over bits", sections, lambda loss: f"{loss.bits} bits", EVERY, (NATS,))


def over_structures(losses: Sequence[Loss]) -> Table | None:
    """Method by structure of the model, each number of bits by itself; models that see are left to the next table."""
    of_text = [loss for loss in losses if loss.subject.modality == "text"]
    sections = _at_each_bits(of_text, lambda loss: loss.subject.structure)
    return _table("Robustness over structures", sections, lambda loss: loss.subject.structure, EVERY, (NATS,))


def over_modalities(losses: Sequence[Loss], of_images: Sequence[Loss]) -> Table | None:
    """Method by what a model takes in: text of both kinds of models, and questions about images.

    Text models are those of a structure that a model that sees has too, so that the modality alone differs.
    of_images: losses of accuracies of tasks that show images.
    """
    seeing = {loss.subject.structure for loss in losses if loss.subject.modality != "text"}
    alike = [loss for loss in losses if loss.subject.structure in seeing]
    seen = [loss for loss in of_images if loss.subject.modality != "text"]
    sections = _at_each_bits([*alike, *seen], _reads)
    return _table("Robustness over modalities", sections, _reads, None, (NATS, POINTS if of_images else ""))


def _reads(loss: Loss) -> str:
    """The column of a loss in the table of modalities."""
    if loss.metric.kind is Kind.ACCURACY:
        return IMAGES
    return "text models" if loss.subject.modality == "text" else f"{loss.subject.modality} models, text"


def _at_each_bits(losses: Sequence[Loss], column: Callable[[Loss], str]) -> list[tuple[str, list[Loss]]]:
    """(heading, losses) of each protocol and bits where there is more than one column to compare."""
    found = _by(losses, lambda loss: (loss.bits, loss.protocol))
    return [
        (f"{bits} bits: {protocol.words}", of_both)
        for (bits, protocol), of_both in sorted(found.items(), key=lambda item: item[0][0])
        if _distinct(of_both, column) > 1
    ]


def _table(
    title: str,
    sections: Sequence[tuple[str, Sequence[Loss]]],
    column: Callable[[Loss], str],
    total: str | None,
    notes: tuple[str, ...],
) -> Table | None:
    """total: the name of a last column that takes all others together; null for none."""
    everything = [loss for _, found in sections for loss in found]
    if not everything:
        return None
    columns = list(_by(sorted(everything, key=lambda loss: loss.bits), column))
    shown = tuple(Section(heading, _rows(found, columns, column, total)) for heading, found in sections)
    names = [*columns, *([total] if total else [])]
    return Table(
        title,
        (("method", False), *((name, True) for name in names)),
        shown,
        (*filter(None, notes), _models_note(everything, column), seeds_note(everything)),
    )


def _rows(
    found: Sequence[Loss], columns: Sequence[str], column: Callable[[Loss], str], total: str | None
) -> tuple[tuple[TextCell, ...], ...]:
    rows = []
    for method, of_method in _by(found, lambda loss: loss.method).items():
        parts = _by(of_method, column)
        cells = [_cell(parts.get(name, [])) for name in columns]
        rows.append((bare(method), *cells, *([_cell(of_method)] if total else [])))
    return tuple(rows)


def _cell(losses: Sequence[Loss]) -> TextCell:
    if not losses:
        return TextCell(marks=(Mark("not in the sweep", "quiet"),))
    found = robustness(losses)
    marks = [
        Mark(f"{reason}: {', '.join(models)}", "bad" if reason.startswith("failed") else "quiet", _anchor(reason))
        for reason, models in missing(losses).items()
    ]
    if found is None:
        return TextCell(marks=tuple(marks))
    if found.degraded:
        marks.insert(0, Mark(f"degraded: {', '.join(found.degraded)}", "warn", "degraded"))
    unit = _number(losses[0])
    lines = [unit(found.mean)]
    if found.num_values > 1:
        lines.append(f"worst {unit(found.worst)} {found.worst_at.subject.model}")
    if found.mean_rank is not None and found.worst_rank is not None:
        worst = f", worst {_rank(found.worst_rank)}" if found.num_values > 1 else ""
        lines.append(f"rank {_rank(found.mean_rank)}{worst}")
    return TextCell(tuple(lines), tuple(marks))


def _anchor(reason: str) -> str | None:
    return "failures" if reason.startswith("failed") else None


def _number(loss: Loss) -> Callable[[float], str]:
    if loss.metric.kind is Kind.ACCURACY:
        return lambda value: f"{text.signed(value, 1)} pt"
    return lambda value: text.signed(value, 3)


def _rank(value: float) -> str:
    return text.number(value, 0 if value == int(value) else 1)


def _models_note(losses: Sequence[Loss], column: Callable[[Loss], str]) -> str:
    """Which models stand behind a column, where that differs."""
    models = {
        name: ", ".join(_by(found, lambda loss: loss.subject.model)) for name, found in _by(losses, column).items()
    }
    if len(set(models.values())) == 1:
        return f"Models: {next(iter(models.values()))}."
    return "Models: " + "; ".join(f"{name}: {of_column}" for name, of_column in models.items()) + "."


def seeds_note(losses: Sequence[Loss]) -> str:
    """How many seeds stand behind the values, as a sentence."""
    counts = seed_counts(losses)
    if not counts:
        return "No place has a value yet."
    if counts == [1]:
        return "One seed for each value: differences of the size of seed noise mean nothing."
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Each loss is a mean over {seeds} seeds."


def _distinct(losses: Sequence[Loss], of: Callable[[Loss], str]) -> int:
    return len({of(loss) for loss in losses})


def _by(losses: Sequence[Loss], of: Callable[[Loss], T]) -> dict[T, list[Loss]]:
    """Groups in order of appearance."""
    found: dict[T, list[Loss]] = {}
    for loss in losses:
        found.setdefault(of(loss), []).append(loss)
    return found
