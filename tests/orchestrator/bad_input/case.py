"""One bad input: what a user writes, what lies on the disk, and words that the answer must hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """overrides: behind the verb and a model and texts of the user's own, in place of those of the same keys.

    said: what is wrong, where (file, key or line), and what to write instead. prepare: makes the files, given the
    directory in which the command runs.
    """

    overrides: tuple[str, ...]
    said: tuple[str, ...]
    prepare: Callable[[Path], object] | None = None

    @property
    def name(self) -> str:
        return " ".join(self.overrides)[:60]


def bad(overrides: str | list[str], *said: str, prepare: Callable[[Path], object] | None = None) -> Case:
    """A case; overrides in one text are told apart by spaces."""
    return Case(tuple(overrides.split(" ") if isinstance(overrides, str) else overrides), said, prepare)
