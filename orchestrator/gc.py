"""Removing checkpoints nobody needs."""

import contextlib
import re
import shutil

from rich.console import Console

from orchestrator.storage import Storage

# A checkpoint, an unfinished one, or the temporary copy that an evaluation left when it was killed.
REMOVABLE = re.compile(r"(\.partial-)?(?P<key>[0-9a-f]{64})|\.dense-.*")


def collect(storage: Storage, needed: set[str], console: Console, *, really: bool) -> int:
    """Remove what no key in `needed` names; without `really`, only list it. Other things lying there are left alone.

    Raises LockedError while a sweep runs on this storage: what it is working on would be removed.
    """
    total = 0
    with contextlib.ExitStack() as leases:
        if really:
            for sweep in (storage.root / "leases").iterdir():
                if sweep.is_dir():
                    leases.enter_context(storage.lease(sweep.name))
        for directory in sorted((storage.root / "checkpoints").iterdir()):
            match = REMOVABLE.fullmatch(directory.name)
            if match is None or match["key"] in needed:
                continue
            size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
            total += size
            console.print(f"{'removed' if really else 'would remove'} {directory.name[:24]}  {size / 2**20:.1f} MiB")
            if really:
                shutil.rmtree(directory)
    console.print(f"{total / 2**20:.1f} MiB" + ("" if really or not total else "; to remove them: ptqbench gc --yes"))
    return 0
