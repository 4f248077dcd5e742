"""A storage that is full, read-only or gone: what the driver says; nothing is half written, and the next goes on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import cli, driver, results
from orchestrator.cell import CellStatus
from orchestrator.events import End, QuantizeEnded
from orchestrator.results import SweepRecord
from orchestrator.storage import Storage, end_attempt, lost, read_result
from tests.orchestrator.hand_made import make_cell
from tests.orchestrator.mounts import fill, mount, small_disk, unmount
from tests.orchestrator.test_driver import FakeScheduler, drive
from workers.errors import PrerequisiteError

LOST = lost("quantize", "the worker process died")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as directory:
        yield directory


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "POLL_SECONDS", 0.0)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# --- full ------------------------------------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_half_written_and_with_room_it_goes_on(disk: Path) -> None:
    storage, cell = Storage(disk), make_cell()
    open_one = storage.open_attempt(cell, 1)
    filler = fill(disk)
    before = everything(disk)
    uses: list[Callable[[], object]] = [
        lambda: storage.open_attempt(cell, 2),
        lambda: end_attempt(open_one.directory, cell, CellStatus.FAILED, LOST),
        lambda: storage.end_abandoned([cell]),
        lambda: storage.lease("mine").__enter__(),
    ]
    for use in uses:
        with pytest.raises(PrerequisiteError, match=rf"{disk}.*: No space left on device; make room there"):
            use()
    assert everything(disk) - before <= {"leases/mine"} and read_result(open_one.directory) is None
    filler.unlink()
    assert storage.end_abandoned([cell]) == 1
    assert drive(storage, cell, FakeScheduler()) == ["WORKER_LOST", "SUCCEEDED"]


def test_a_driver_whose_disk_fills_up_ends_and_the_next_one_goes_on(disk: Path) -> None:
    class Filling(FakeScheduler):
        filler: Path | None = None

        def wait(self, timeout_seconds: float) -> list[End]:
            self.filler = self.filler or fill(disk)
            return [QuantizeEnded(end.key, LOST) for end in super().wait(timeout_seconds)]

    storage, cell, scheduler = Storage(disk), make_cell(), Filling()
    with pytest.raises(PrerequisiteError, match="No space left on device"):
        drive(storage, cell, scheduler)
    assert storage.states([cell])[cell.key].status is CellStatus.RUNNING  # there was no room to say how it ended
    assert scheduler.filler is not None
    scheduler.filler.unlink()
    assert storage.end_abandoned([cell]) == 1
    assert drive(storage, cell, FakeScheduler()) == ["WORKER_LOST", "SUCCEEDED"]


# --- read-only -------------------------------------------------------------------------------------------------------


def test_a_storage_that_is_read_only_can_be_looked_at_but_not_driven(disk: Path) -> None:
    storage, cell = Storage(disk), make_cell()
    end_attempt(storage.open_attempt(cell, 1).directory, cell, CellStatus.FAILED, LOST)
    mount("-o", "remount,ro", str(disk))
    again = Storage(disk)
    assert again.states([cell])[cell.key].status is CellStatus.FAILED
    with (
        pytest.raises(PrerequisiteError, match=r"Read-only file system; make it writable, .* or give another"),
        again.driving("mine"),
    ):
        pass


# --- gone ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A storage that is mounted and, in contrast to a tmpfs, outlives that."""
    kept, seen = tmp_path / "kept", tmp_path / "seen"
    kept.mkdir()
    seen.mkdir()
    mount("--bind", str(kept), str(seen))
    yield seen
    unmount(seen)


def test_a_storage_that_is_unmounted_ends_the_driver_and_loses_nothing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "NODES_SECONDS", 0.0)

    class Unmounting(FakeScheduler):
        def wait(self, timeout_seconds: float) -> list[End]:
            unmount(shared)
            return []

    storage, cell = Storage(shared), make_cell()
    with pytest.raises(PrerequisiteError, match=rf"storage {shared}: .*; see that it is there \(is it mounted\?\)"):
        drive(storage, cell, Unmounting())
    assert list(shared.iterdir()) == []
    with pytest.raises(PrerequisiteError), storage.lease("mine"):
        pass
    assert list(shared.iterdir()) == []
    mount("--bind", str(shared.with_name("kept")), str(shared))
    assert storage.end_abandoned([cell]) == 1
    assert drive(storage, cell, FakeScheduler()) == ["WORKER_LOST", "SUCCEEDED"]


def test_where_another_storage_appears_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "NODES_SECONDS", 0.0)

    class Swapping(FakeScheduler):
        def wait(self, timeout_seconds: float) -> list[End]:
            if not (tmp_path / "away").exists():
                (tmp_path / "storage").rename(tmp_path / "away")
                Storage(tmp_path / "storage")
            return []

    storage, cell = Storage(tmp_path / "storage"), make_cell()
    with pytest.raises(PrerequisiteError, match="another storage lies there now"):
        drive(storage, cell, Swapping())
    assert list((tmp_path / "storage" / "attempts").iterdir()) == []


# --- results/ --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_composition")
def test_results_that_cannot_be_written_are_named(
    mine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "results", "1m") as disk:
        results.write_record("mine", SweepRecord([*mine, f"cluster.storage={tmp_path / 'storage'}"], []))
        filler = fill(disk)
        assert cli.main(["report", "name=mine"]) == 3
        assert f"results {disk / 'mine'}: No space left on device; make room there" in said(capsys)
        assert everything(disk) == {"mine", "mine/sweep.json", "filler"}
        filler.unlink()
        (disk / "mine" / "cells.csv").mkdir()
        assert cli.main(["report", "name=mine"]) == 3
        assert "cells.csv: Is a directory; put right what lies there" in said(capsys)
        mount("-o", "remount,ro", str(disk))
        with pytest.raises(PrerequisiteError, match=rf"results {disk / 'mine'}.* Read-only file system; make it"):
            results.write_record("mine", SweepRecord([], []))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_results_directory_that_is_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").write_text("")
    for use in (lambda: results.write_record("mine", SweepRecord([], [])), results.results_id):
        with pytest.raises(PrerequisiteError, match=f"results {tmp_path / 'results'}.*; put right what lies there"):
            use()
