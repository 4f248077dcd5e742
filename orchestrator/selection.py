"""Which of a sweep's failed cells `resubmit` runs again: those that failed in some way, or those that are named."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from conf.errors import ConfigError
from orchestrator.cell import Cell, CellStatus
from orchestrator.storage import CellState
from workers.api import FailureKind

ENDED_BADLY = (CellStatus.FAILED, CellStatus.CANCELLED)
MIN_KEY_DIGITS = 8  # hexadecimal; fewer could be a word


def split_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of cells, overrides). An override is `key=...` with no space in the key.

    A label's first word is the model's name: where a model is called `a=b`, its cells are named by their keys.
    """
    names = [text for text in arguments if not re.match(r"[^\s=]+=", text)]
    return names, [text for text in arguments if text not in names]


def named(cells: Sequence[Cell], states: Mapping[str, CellState], names: Sequence[str]) -> list[Cell]:
    """The cells of these labels or keys (at least eight digits of one).

    Raises ConfigError with every name that is no cell's, or more than one's, or whose cell did not end badly.
    """
    found: dict[str, Cell] = {}
    problems = []
    for name in names:
        matches = [cell for cell in cells if _is_called(cell, name)]
        if len(matches) == 1:
            found[matches[0].key] = matches[0]
        elif matches:
            problems.append(f"`{name}` begins the keys of {len(matches)} cells; give more digits")
        else:
            problems.append(_unknown(name, cells))
    for key, cell in found.items():
        if states[key].status not in ENDED_BADLY:
            problems.append(f"{cell.label} is {states[key].status}: only what has FAILED or was CANCELLED runs again")
    if problems:
        raise ConfigError("\n".join(problems))
    return list(found.values())


def failed_with(cells: Sequence[Cell], states: Mapping[str, CellState], kinds: Sequence[FailureKind]) -> list[Cell]:
    """The cells whose last attempt failed in one of these ways."""
    return [cell for cell in cells if _kind(states[cell.key]) in kinds]


def failures(cells: Sequence[Cell], states: Mapping[str, CellState]) -> str:
    """`2 TRANSIENT, 1 NO_OP`: how the cells that have failed did so; empty when none has."""
    counts = Counter(kind.value for cell in cells if (kind := _kind(states[cell.key])) is not None)
    return ", ".join(f"{number} {kind}" for kind, number in counts.most_common())


def _kind(state: CellState) -> FailureKind | None:
    if state.status is not CellStatus.FAILED or state.last is None or state.last.result is None:
        return None
    failure = state.last.result.failure
    return failure.kind if failure is not None else None


def _is_called(cell: Cell, name: str) -> bool:
    is_key = len(name) >= MIN_KEY_DIGITS and re.fullmatch(r"[0-9a-f]+", name) is not None
    return name == cell.label or (is_key and cell.key.startswith(name))


def _unknown(name: str, cells: Sequence[Cell]) -> str:
    if name in set(FailureKind):
        return f"`{name}` is a kind of failure, not a cell; several kinds: --failure {name},OTHER"
    near = difflib.get_close_matches(name, [cell.label for cell in cells], n=3, cutoff=0.4)
    labels = ", ".join(f'"{label}"' for label in near or [cell.label for cell in cells[:3]])
    return f"no cell `{name}` in this sweep; {'nearest' if near else 'labels look like'}: {labels}"
