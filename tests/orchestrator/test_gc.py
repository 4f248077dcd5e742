"""What `gc` removes: checkpoints that no sweep needs, whole or not, what killed processes left, and nothing else."""

import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import results
from orchestrator.cell import CellStatus
from orchestrator.gc import collect
from orchestrator.needs import needs_of_others, write_needs
from orchestrator.results import SweepRecord
from orchestrator.storage import Storage, end_attempt
from tests.orchestrator.hand_made import make_cell
from workers.api import Failure, FailureKind
from workers.errors import LockedError, PrerequisiteError
from workers.files import locked
from workers.layout import statistics_lock

NEEDED, OLD, THEIRS = "a" * 64, "b" * 64, "c" * 64
KEPT = {NEEDED, f".partial-{NEEDED}", "notes", "README.md", f"{OLD}.tar"}
GONE = {OLD, f".partial-{OLD}", ".dense-k2x9"}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.chdir(tmp_path)
    storage = Storage(tmp_path / "storage")
    for name in (KEPT | GONE) - {"README.md", f"{OLD}.tar"}:
        fill(storage, name)
    for name in ("README.md", f"{OLD}.tar"):
        storage.checkpoint(name).touch()
    record(storage, "mine", NEEDED)
    return storage


def fill(storage: Storage, name: str) -> None:
    storage.checkpoint(name).mkdir()
    (storage.checkpoint(name) / "file").write_bytes(bytes(2**20))


def record(storage: Storage, sweep: str, *quantize_keys: str) -> None:
    """As a driver does at its start."""
    results.write_record(sweep, SweepRecord([], list(quantize_keys), str(storage.root), storage.id))
    write_needs(storage, sweep, list(quantize_keys))


def collected(storage: Storage, *, really: bool) -> str:
    said = io.StringIO()
    assert collect(storage, Console(file=said, width=500), really=really) == 0
    return said.getvalue()


def left(storage: Storage) -> set[str]:
    return {path.name for path in (storage.root / "checkpoints").iterdir()}


def test_without_yes_it_only_says_what_would_go(storage: Storage) -> None:
    said = collected(storage, really=False)
    assert left(storage) == KEPT | GONE
    assert said.count("would remove") == 3
    assert "3.0 MiB; to remove them: ptqbench gc --yes" in said


def test_with_yes_it_removes_what_no_sweep_needs_and_nothing_else(storage: Storage) -> None:
    collected(storage, really=True)
    assert left(storage) == KEPT
    assert (storage.checkpoint(NEEDED) / "file").exists()
    assert collected(storage, really=True).splitlines()[-1] == "0.0 MiB"


def test_while_a_sweep_runs_nothing_is_removed(storage: Storage) -> None:
    with storage.lease("mini"), pytest.raises(LockedError, match="sweep mini is being driven"):
        collected(storage, really=True)
    assert left(storage) == KEPT | GONE
    collected(storage, really=True)
    assert left(storage) == KEPT


def test_a_checkpoint_whose_evaluation_failed_is_kept(storage: Storage) -> None:
    cell = make_cell()
    fill(storage, cell.quantize_key)
    record(storage, "failing", cell.quantize_key)
    failure = Failure("evaluate", FailureKind.ENGINE, "the engine died")
    end_attempt(storage.open_attempt(cell, 1).directory, cell, CellStatus.FAILED, failure)
    collected(storage, really=True)
    assert cell.quantize_key in left(storage)


# --- sweeps of other results directories -----------------------------------------------------------------------------


def test_what_sweeps_recorded_elsewhere_need_is_kept_and_said(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(storage, THEIRS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    record(storage, "mine", THEIRS)  # of the same name
    monkeypatch.chdir(tmp_path)
    (path,) = needs_of_others(storage)
    said = collected(storage, really=True)
    assert left(storage) == KEPT | {THEIRS}
    assert f":{elsewhere}/results: 1 checkpoints, 1.0 MiB; if it is not wanted any more: rm {path}" in said
    path.unlink()
    collected(storage, really=True)
    assert left(storage) == KEPT


def test_a_sweep_whose_results_were_removed_needs_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    (results.sweep_directory("mine") / "sweep.json").unlink()
    assert "kept for" not in collected(storage, really=True)
    assert left(storage) == {"notes", "README.md", f"{OLD}.tar"}
    assert list((storage.root / "needs").iterdir()) == []


def test_needs_that_cannot_be_read_stop_it(storage: Storage) -> None:
    (storage.root / "needs" / "other-0.json").write_text("{")
    with pytest.raises(PrerequisiteError, match=r"needs/other-0.json: not what a sweep wrote"):
        collected(storage, really=True)
    assert left(storage) == KEPT | GONE


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_go_unless_a_worker_is_writing_one(storage: Storage) -> None:
    kept = storage.statistics / NEEDED / "block-00000.moments.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(2**19))
    assert "would remove statistics  0.5 MiB" in collected(storage, really=False)
    with locked(statistics_lock(storage.root)):
        assert "in use: statistics" in collected(storage, really=True)
    assert kept.exists()
    assert collected(storage, really=True) == "removed statistics  0.5 MiB\n0.5 MiB\n"
    assert not storage.statistics.exists()


# --- what killed processes leave -------------------------------------------------------------------------------------


def test_what_a_worker_that_outlived_its_driver_is_making_is_left(storage: Storage) -> None:
    with locked(storage.root / "leases" / f"{OLD}.lock"):
        said = collected(storage, really=True)
        assert said.count("in use: ") == 2
    assert left(storage) == KEPT | {OLD, f".partial-{OLD}"}
    collected(storage, really=True)
    assert left(storage) == KEPT


def test_lock_files_and_drafts_go_when_nobody_holds_them(storage: Storage) -> None:
    leases, attempts = storage.root / "leases", storage.root / "attempts"
    old, young = (attempts / f".{digit * 32}" for digit in "01")
    for draft in (old, young):
        draft.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    attempt = storage.open_attempt(make_cell(), 1)
    (leases / f"{NEEDED}.lock").touch()
    with locked(leases / f"{THEIRS}.lock"):
        collected(storage, really=True)
        assert [path.name for path in leases.glob("*.lock")] == [f"{THEIRS}.lock"]
    assert set(attempts.iterdir()) == {young, attempt.directory}
