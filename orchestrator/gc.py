"""Removing checkpoints nobody needs, statistics, which can be computed anew, and what killed processes left behind."""

import contextlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from orchestrator import results
from orchestrator.io_errors import explained
from orchestrator.needs import drop_needs, needs_of_others
from orchestrator.storage import Storage, num_bytes
from workers.files import locked
from workers.layout import claim_file, statistics_lock

# A checkpoint, an unfinished one, or the temporary copy that an evaluation left when it was killed.
REMOVABLE = re.compile(r"(\.partial-)?(?P<key>[0-9a-f]{64})|\.dense-.*")
CLAIM = re.compile(r"(?P<key>[0-9a-f]{64})\.lock")
DRAFT = re.compile(r"\.[0-9a-f]{32}")
DRAFT_SECONDS = 3600.0  # an attempt is a draft for milliseconds; by the file system's clock and this host's


def collect(storage: Storage, console: Console, *, really: bool) -> int:
    """Remove what no sweep needs; without `really`, only list it. Other things lying there are left alone.

    Raises LockedError while a sweep runs on this storage: what it is working on would be removed.
    """
    with (
        explained(f"storage {storage.root}", "run it where the storage can be written"),
        contextlib.ExitStack() as held,
    ):
        if really:
            for sweep in (storage.root / "leases").iterdir():
                if sweep.is_dir():
                    held.enter_context(storage.lease(sweep.name))
            drop_needs(storage)
        total = _checkpoints(storage, console, really=really) + _statistics(storage, console, really=really)
        if really:
            _leftovers(storage)
        _say_kept(storage, console)
    console.print(f"{total / 2**20:.1f} MiB" + ("" if really or not total else "; to remove them: ptqbench gc --yes"))
    return 0


def _checkpoints(storage: Storage, console: Console, *, really: bool) -> int:
    """Returns the bytes removed, or to remove. A sweep may begin meanwhile, so needs are read for each anew."""
    total = 0
    for directory in sorted((storage.root / "checkpoints").iterdir()):
        match = REMOVABLE.fullmatch(directory.name)
        if match is None or match["key"] in _needed(storage):
            continue
        size = num_bytes(directory)
        if really and not _removed(storage, directory, match["key"]):
            console.print(f"in use: {directory.name[:24]}", highlight=False)
            continue
        total += size
        console.print(f"{'removed' if really else 'would remove'} {directory.name[:24]}  {size / 2**20:.1f} MiB")
    return total


def _statistics(storage: Storage, console: Console, *, really: bool) -> int:
    """Returns the bytes removed, or to remove."""
    size = num_bytes(storage.statistics)
    if not size:
        return 0
    if really and not _unless_locked(statistics_lock(storage.root), lambda: shutil.rmtree(storage.statistics)):
        console.print("in use: statistics", highlight=False)
        return 0
    console.print(f"{'removed' if really else 'would remove'} statistics  {size / 2**20:.1f} MiB")
    return size


def _needed(storage: Storage) -> set[str]:
    """By the sweeps under results/, and by those that other results/ directories have told the storage of."""
    here = {key for record in results.all_records().values() for key in record.quantize_keys}
    return here | {key for needs in needs_of_others(storage).values() for key in needs.quantize_keys}


def _removed(storage: Storage, directory: Path, key: str | None) -> bool:
    """Remove a directory, unless a worker that outlived its driver still works on it."""
    if key is None:
        shutil.rmtree(directory)
        return True
    return _unless_locked(claim_file(storage.root, key), lambda: shutil.rmtree(directory))


def _leftovers(storage: Storage) -> None:
    """Lock files nobody holds, and attempts that a killed driver was about to open."""
    for path in (storage.root / "leases").iterdir():
        if CLAIM.fullmatch(path.name):
            _unless_locked(path, path.unlink)
    for path in (storage.root / "attempts").iterdir():
        if DRAFT.fullmatch(path.name) and time.time() - path.stat().st_mtime > DRAFT_SECONDS:
            shutil.rmtree(path)


def _unless_locked(path: Path, work: Callable[[], object]) -> bool:
    try:
        with locked(path, wait=False):
            work()
    except BlockingIOError:
        return False
    return True


def _say_kept(storage: Storage, console: Console) -> None:
    for path, needs in needs_of_others(storage).items():
        checkpoints = [storage.checkpoint(key) for key in needs.quantize_keys]
        there = [directory for directory in checkpoints if directory.exists()]
        size = sum(map(num_bytes, there)) / 2**20
        console.print(
            f"kept for sweep {needs.sweep} of {needs.results}: {len(there)} checkpoints, {size:.1f} MiB; if it is not "
            f"wanted any more: rm {path}",
            highlight=False,
        )
