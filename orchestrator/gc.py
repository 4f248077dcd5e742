"""Removing checkpoints nobody needs."""

import shutil

from rich.console import Console

from orchestrator.storage import Storage


def collect(storage: Storage, needed: set[str], console: Console, *, really: bool) -> int:
    """Remove checkpoints (and unfinished ones) whose key is not in `needed`; without `really`, only list them."""
    total = 0
    for directory in sorted((storage.root / "checkpoints").iterdir()):
        if directory.name.removeprefix(".partial-") in needed:
            continue
        size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
        total += size
        console.print(f"{'removed' if really else 'would remove'} {directory.name[:24]}  {size / 2**20:.1f} MiB")
        if really:
            shutil.rmtree(directory)
    console.print(f"{total / 2**20:.1f} MiB" + ("" if really or not total else "; to remove them: ptqbench gc --yes"))
    return 0
