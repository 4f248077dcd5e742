"""Small text files that other processes read: there whole, or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write a file in one step, whatever was there."""
    with _written_aside(path, text) as aside:
        aside.replace(path)


def create(path: Path, text: str) -> bool:
    """Write a file in one step unless there is one; says whether it did. The file system must have hard links."""
    with _written_aside(path, text) as aside:
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        return True


@contextlib.contextmanager
def _written_aside(path: Path, text: str) -> Iterator[Path]:
    """The text in a file beside `path`, of a name that no process on any node uses."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        aside.write_text(text, encoding="utf-8")
        yield aside
    finally:
        aside.unlink(missing_ok=True)
