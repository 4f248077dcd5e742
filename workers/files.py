"""Small files that other processes read, and locks: what has to hold on every node and through every crash."""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # why a directory cannot be renamed to a name in use


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


def claim_name(draft: Path, path: Path) -> bool:
    """Rename a directory to a name unless that is in use; says whether it did."""
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the operating system's lock on a file, which is made where there is none, in a directory that is there.

    The lock ends with the process that holds it, however that ends. Whoever holds it may remove the file. Raises
    BlockingIOError where another holds it and `wait` is false.
    """
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_of(path, file):
                yield
                return


def unfit_reason(directory: Path) -> str | None:
    """Why `create`, `claim_name` and `locked` cannot be relied on in `directory`, or null. Leaves nothing behind.

    What this node alone can see: on NFS mounted with local_lock, or Lustre with localflock, two nodes may still hold
    one lock.

    Raises OSError where nothing can be written.
    """
    trial = directory / f".probe-{uuid.uuid4().hex}"
    trial.mkdir()
    try:
        return _replacing_renames(trial) or _no_hard_links(trial) or _no_locks(trial / "lock")
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _replacing_renames(trial: Path) -> str | None:
    first, second = trial / "first", trial / "second"
    for directory in (first, second):
        directory.mkdir()
        (directory / "file").touch()
    return "a directory can be renamed to a name in use" if claim_name(first, second) else None


def _no_hard_links(trial: Path) -> str | None:
    try:
        if create(trial / "file", "1") and not create(trial / "file", "2"):
            return None
    except OSError as error:
        return f"its file system has no hard links ({error.strerror})"
    return "two can create one file"


def _no_locks(path: Path) -> str | None:
    try:
        with locked(path):
            try:
                with locked(path, wait=False):
                    return "two can hold one lock"
            except BlockingIOError:
                return None
    except OSError as error:
        return f"its file system has no locks ({error.strerror})"


def _is_file_of(path: Path, file: IO[bytes]) -> bool:
    """Whether the open file still has this name: its last holder may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _written_aside(path: Path, text: str) -> Iterator[Path]:
    """The text in a file beside `path`, of a name that no process on any node uses; on the disk before it is named."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)
