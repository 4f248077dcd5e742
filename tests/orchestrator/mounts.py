"""File systems that a test may fill, make read-only or take away. Mounting takes root."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(*arguments: str) -> None:
    """Run `mount`; skips the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip() or done.returncode}")


def unmount(directory: Path) -> None:
    """Take a file system away, though files on it are open."""
    subprocess.run(["umount", "--lazy", str(directory)], capture_output=True, check=False)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """An empty file system of this size at `directory`."""
    directory.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory))
    try:
        yield directory
    finally:
        unmount(directory)


def fill(directory: Path) -> Path:
    """Leave no byte free; returns the file to remove."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler
