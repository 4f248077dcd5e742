"""What `gc` removes: checkpoints that no sweep needs, whole or not, and nothing else."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.gc import collect
from orchestrator.storage import Storage
from workers.errors import LockedError

NEEDED, OLD = "a" * 64, "b" * 64
KEPT = {NEEDED, f".partial-{NEEDED}", "notes", "README.md", f"{OLD}.tar"}
GONE = {OLD, f".partial-{OLD}", ".dense-k2x9"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path)
    for name in (KEPT | GONE) - {"README.md", f"{OLD}.tar"}:
        storage.checkpoint(name).mkdir()
        (storage.checkpoint(name) / "file").write_bytes(bytes(2**20))
    for name in ("README.md", f"{OLD}.tar"):
        storage.checkpoint(name).touch()
    return storage


def left(storage: Storage) -> set[str]:
    return {path.name for path in (storage.root / "checkpoints").iterdir()}


def test_without_yes_it_only_says_what_would_go(storage: Storage) -> None:
    said = io.StringIO()
    assert collect(storage, {NEEDED}, Console(file=said, width=200), really=False) == 0
    assert left(storage) == KEPT | GONE
    assert said.getvalue().count("would remove") == 3
    assert "3.0 MiB; to remove them: ptqbench gc --yes" in said.getvalue()


def test_with_yes_it_removes_what_no_sweep_needs_and_nothing_else(storage: Storage) -> None:
    said = io.StringIO()
    collect(storage, {NEEDED}, Console(file=said, width=200), really=True)
    assert left(storage) == KEPT
    assert (storage.checkpoint(NEEDED) / "file").exists()
    collect(storage, {NEEDED}, Console(file=said, width=200), really=True)
    assert said.getvalue().splitlines()[-1] == "0.0 MiB"


def test_while_a_sweep_runs_nothing_is_removed(storage: Storage) -> None:
    console = Console(file=io.StringIO())
    with storage.lease("mini"), pytest.raises(LockedError, match="sweep mini is being driven"):
        collect(storage, {NEEDED}, console, really=True)
    assert left(storage) == KEPT | GONE
    collect(storage, {NEEDED}, console, really=True)
    assert left(storage) == KEPT
