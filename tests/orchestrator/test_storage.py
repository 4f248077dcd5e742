"""Attempts, results and checkpoints on disk: numbered without doubles, written once, read whatever else lies there."""

import contextlib
import errno
import multiprocessing
import multiprocessing.synchronize
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cell import Cell, CellStatus
from orchestrator.storage import Attempt, AttemptTaken, DriverName, Storage, end_attempt, lost, read_result
from tests.orchestrator.hand_made import make_cell, with_bits
from workers.api import (
    AttemptResult,
    Canary,
    EvaluateResult,
    Failure,
    FailureKind,
    Manifest,
    Metric,
    QuantizeResult,
    to_json,
)
from workers.errors import PrerequisiteError
from workers.files import create

FAILURE = Failure("quantize", FailureKind.NUMERICAL, "layer 3 is not finite", layer="layer 3")
QUANTIZED = QuantizeResult("checkpoint", reused=False, seconds=2.0, peak_memory_gib=0.5, worker_start_seconds=1.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "storage")


def succeeded(cell: Cell) -> AttemptResult:
    metric = Metric("held_out.perplexity", 7.5, 0.1, 8, "1")
    evaluated = EvaluateResult([metric], "5.19.0", "fresh", 0.0, {"load": 1.0})
    return AttemptResult(cell.evaluate_key, cell.quantize_key, "SUCCEEDED", None, QUANTIZED, evaluated)


def open_next(storage: Storage, cell: Cell) -> Attempt:
    """As a driver does that has just looked."""
    return storage.open_attempt(cell, storage.states([cell])[cell.key].next_number)


def write_manifest(storage: Storage, quantize_key: str, *files: str) -> Path:
    directory = storage.checkpoint(quantize_key)
    directory.mkdir()
    manifest = Manifest(
        quantize_key, "s", "packed", "h", 8, 3.5, 100, Canary([], [], []), [], dict.fromkeys(files, "0"), 1.0, 1.0, {}
    )
    (directory / "manifest.json").write_text(to_json(manifest))
    return directory


# --- attempts --------------------------------------------------------------------------------------------------------


def test_attempts_are_numbered_from_one_and_say_what_they_are(storage: Storage) -> None:
    cell = make_cell()
    attempts = [open_next(storage, cell) for _ in range(3)]
    assert [a.name for a in attempts] == [f"{cell.key[:16]}-00{n}" for n in (1, 2, 3)]
    assert all(cell.evaluate_key in (a.directory / "cell.json").read_text() for a in attempts)


def test_a_number_that_was_removed_is_not_given_again_before_the_last(storage: Storage) -> None:
    cell = make_cell()
    first, _ = open_next(storage, cell), open_next(storage, cell)
    (first.directory / "cell.json").unlink()
    first.directory.rmdir()
    assert open_next(storage, cell).number == 3


def test_the_thousandth_attempt_is_the_last(storage: Storage) -> None:
    cell = make_cell()
    for number in (999, 1000):
        directory = storage.root / "attempts" / f"{cell.key[:16]}-{number}"
        directory.mkdir()
        (directory / "cell.json").write_text("{}")
    assert [a.number for a in storage.states([cell])[cell.key].attempts] == [999, 1000]
    assert open_next(storage, cell).number == 1001


def test_who_looked_before_another_opened_leaves_the_cell_to_it(storage: Storage) -> None:
    cell = make_cell()
    seen = storage.states([cell])[cell.key].next_number
    first = storage.open_attempt(cell, seen)
    for _ in range(2):  # open, then ended
        with pytest.raises(AttemptTaken):
            storage.open_attempt(cell, seen)
        end_attempt(first.directory, cell, CellStatus.FAILED, FAILURE)
    assert [path.name for path in (storage.root / "attempts").iterdir()] == [first.name]


def take_one(root: Path, barrier: multiprocessing.synchronize.Barrier, winners: "multiprocessing.Queue[int]") -> None:
    storage = Storage(root)
    number = storage.states([make_cell()])[make_cell().key].next_number
    barrier.wait()
    with contextlib.suppress(AttemptTaken):
        winners.put(storage.open_attempt(make_cell(), number).number)


def test_of_processes_that_want_one_cell_one_gets_it(storage: Storage) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(1, 6):
        barrier, winners = context.Barrier(4), context.Queue()
        processes = [context.Process(target=take_one, args=(storage.root, barrier, winners)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [p.exitcode for p in processes] == [0] * 4
        assert winners.get(timeout=5) == number and winners.empty()
    assert [a.number for a in storage.states([make_cell()])[make_cell().key].attempts] == [1, 2, 3, 4, 5]


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [CellStatus.FAILED, CellStatus.CANCELLED])
def test_a_cell_stands_where_its_last_attempt_ended(storage: Storage, status: CellStatus) -> None:
    cell = make_cell()
    assert storage.states([cell])[cell.key].status is CellStatus.PENDING
    attempt = open_next(storage, cell)
    assert storage.states([cell])[cell.key].status is CellStatus.RUNNING
    end_attempt(attempt.directory, cell, status, FAILURE)
    assert storage.states([cell])[cell.key].status is status
    again = open_next(storage, cell)
    assert storage.states([cell])[cell.key].status is CellStatus.RUNNING
    create(again.directory / "result.json", to_json(succeeded(cell)))
    state = storage.states([cell])[cell.key]
    assert state.status is CellStatus.SUCCEEDED
    assert [a.result is not None and a.result.failure for a in state.attempts] == [FAILURE, None]
    assert state.last == state.attempts[1]


def test_cells_do_not_see_each_others_attempts(storage: Storage) -> None:
    cells = [make_cell(with_bits(bits)) for bits in (2, 3, 4)]
    storage.open_attempt(cells[1], 1)
    assert [s.status for s in storage.states(cells).values()] == ["PENDING", "RUNNING", "PENDING"]


@pytest.mark.parametrize("status", [CellStatus.FAILED, CellStatus.CANCELLED])
def test_a_cell_that_has_succeeded_stays_so_whatever_is_tried_later(storage: Storage, status: CellStatus) -> None:
    cell = make_cell()
    create(open_next(storage, cell).directory / "result.json", to_json(succeeded(cell)))
    again = open_next(storage, cell)
    assert storage.states([cell])[cell.key].status is CellStatus.SUCCEEDED
    end_attempt(again.directory, cell, status, FAILURE)
    state = storage.states([cell])[cell.key]
    assert state.status is CellStatus.SUCCEEDED and state.last == state.attempts[0] and state.next_number == 3


@pytest.mark.parametrize("support", [CellStatus.NOT_APPLICABLE, CellStatus.NOT_IMPLEMENTED])
def test_what_cannot_run_is_never_read_from_the_storage(storage: Storage, support: CellStatus) -> None:
    cell = make_cell(support=support)
    create(storage.open_attempt(cell, 1).directory / "result.json", to_json(succeeded(cell)))
    assert storage.states([cell])[cell.key].status is support


def test_a_crash_before_an_attempt_was_whole_leaves_no_trace(storage: Storage) -> None:
    cell = make_cell()
    (storage.root / "attempts" / f"{cell.key[:16]}-001").mkdir()
    assert storage.states([cell])[cell.key].status is CellStatus.PENDING
    assert open_next(storage, cell).number == 2


def test_a_crash_while_an_attempt_is_opened_leaves_no_trace(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = make_cell()

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            storage.open_attempt(cell, 1)
    assert storage.states([cell])[cell.key].status is CellStatus.PENDING
    assert open_next(storage, cell).number == 1


def test_what_else_lies_among_the_attempts_is_left_alone(storage: Storage) -> None:
    cell = make_cell()
    attempt = storage.open_attempt(cell, 1)
    stray = [".DS_Store", "notes.txt", "no-number", f"{cell.key[:16]}-xyz", f"{cell.key[:16]}-7", "-001"]
    for name in stray:
        (storage.root / "attempts" / name).write_text("?")
    (storage.root / "attempts" / f"{cell.key[:16]}-044").write_text("a file where a directory belongs")
    assert storage.states([cell])[cell.key].attempts == (attempt,)
    assert open_next(storage, cell).number == 45


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_result_is_written_once_whoever_comes_first(storage: Storage) -> None:
    cell = make_cell()
    directory = storage.open_attempt(cell, 1).directory
    first = end_attempt(directory, cell, CellStatus.CANCELLED, FAILURE)
    assert end_attempt(directory, cell, CellStatus.FAILED, lost("evaluate", "gone")) == first
    assert not create(directory / "result.json", to_json(succeeded(cell)))
    assert read_result(directory) == first
    assert sorted(p.name for p in directory.iterdir()) == ["cell.json", "result.json"]


def test_a_result_keeps_what_the_quantize_stage_left(storage: Storage) -> None:
    cell = make_cell()
    directory = storage.open_attempt(cell, 1).directory
    (directory / "quantize.json").write_text(to_json(QUANTIZED))
    assert end_attempt(directory, cell, CellStatus.FAILED, FAILURE).quantize == QUANTIZED


def test_a_result_survives_writing_and_reading(storage: Storage) -> None:
    cell = make_cell()
    directory = storage.open_attempt(cell, 1).directory
    assert read_result(directory) is None
    create(directory / "result.json", to_json(succeeded(cell)))
    assert read_result(directory) == succeeded(cell)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"status": "SUCCEEDED"}', b"\xff\xfe\x00"])
def test_a_result_that_cannot_be_read_speaks_for_nobody(storage: Storage, content: bytes) -> None:
    cell = make_cell()
    directory = storage.open_attempt(cell, 1).directory
    (directory / "result.json").write_bytes(content)
    state = storage.states([cell])[cell.key]
    assert state.status is CellStatus.FAILED
    assert state.last is not None and state.last.result is not None and state.last.result.failure is not None
    assert state.last.result.failure.kind is FailureKind.WORKER_LOST
    assert f"{directory / 'result.json'} is damaged" in state.last.result.failure.message
    assert open_next(storage, cell).number == 2


def test_what_a_late_worker_writes_changes_nothing(storage: Storage) -> None:
    cell = make_cell()
    directory = storage.open_attempt(cell, 1).directory
    ended = end_attempt(directory, cell, CellStatus.FAILED, FAILURE)
    (directory / "quantize.json").write_text(to_json(QUANTIZED))
    (directory / "log.txt").write_text("still here")
    assert not create(directory / "result.json", to_json(succeeded(cell)))
    assert end_attempt(directory, cell, CellStatus.CANCELLED, None) == ended == read_result(directory)
    assert storage.states([cell])[cell.key].status is CellStatus.FAILED


# --- drivers ---------------------------------------------------------------------------------------------------------


def test_only_attempts_of_dead_drivers_are_ended(storage: Storage) -> None:
    mine, theirs, nobodys = cells = [make_cell(with_bits(bits)) for bits in (2, 3, 4)]
    storage.open_attempt(nobodys, 1)
    other = Storage(storage.root)
    with storage.driving("mine"), other.driving("theirs"):
        storage.open_attempt(mine, 1)
        other.open_attempt(theirs, 1)
        assert storage.end_abandoned(cells) == 1
        assert [s.status for s in storage.states(cells).values()] == ["RUNNING", "RUNNING", "FAILED"]
    assert storage.end_abandoned(cells) == 2
    assert [s.status for s in storage.states(cells).values()] == ["FAILED"] * 3


def test_a_sweep_driven_again_ends_what_its_last_driver_left(storage: Storage) -> None:
    cell = make_cell()
    with storage.driving("mine"):
        storage.open_attempt(cell, 1)
    with storage.driving("mine"):
        assert storage.end_abandoned([cell]) == 1
        assert open_next(storage, cell).driver == DriverName("mine", 2)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_there_when_every_file_of_its_manifest_is(storage: Storage) -> None:
    assert storage.manifest("a" * 64) is None
    assert not storage.has_checkpoint("a" * 64)
    directory = write_manifest(storage, "a" * 64, "block-00000.safetensors")
    assert storage.manifest("a" * 64) is not None
    assert not storage.has_checkpoint("a" * 64)
    (directory / "block-00000.safetensors").touch()
    assert storage.has_checkpoint("a" * 64)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_manifest_that_cannot_be_read_finishes_nothing(storage: Storage, content: bytes) -> None:
    directory = write_manifest(storage, "a" * 64)
    assert storage.has_checkpoint("a" * 64)
    (directory / "manifest.json").write_bytes(content)
    assert storage.manifest("a" * 64) is None and not storage.has_checkpoint("a" * 64)


def test_an_unfinished_checkpoint_is_none(storage: Storage) -> None:
    storage.checkpoint(".partial-" + "a" * 64).mkdir()
    assert not storage.has_checkpoint("a" * 64)


# --- a root that cannot be used --------------------------------------------------------------------------------------


def test_a_root_that_is_no_directory_is_a_missing_prerequisite(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrerequisiteError, match=r"cluster\.storage=<directory>"):
        Storage(tmp_path / "file")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "attempts").write_text("")
    with pytest.raises(PrerequisiteError, match=r"cluster\.storage=<directory>"):
        Storage(tmp_path / "root")


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_root_that_stops_answering_is_a_missing_prerequisite(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, *arguments: object, **more: object) -> None:
        raise OSError(code, "refused", str(self))

    cell = make_cell()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(PrerequisiteError, match="refused"):
            storage.states([cell])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(PrerequisiteError, match="refused"):
            storage.open_attempt(cell, 1)


def test_another_directory_in_its_place_is_not_taken_for_the_storage(storage: Storage, tmp_path: Path) -> None:
    cell = make_cell()
    away = storage.root.rename(tmp_path / "away")
    with pytest.raises(PrerequisiteError, match="see that it is there"):
        storage.check()
    storage.root.mkdir()  # as below a file system that is not mounted
    for use in (storage.check, lambda: storage.states([cell]), lambda: storage.open_attempt(cell, 1)):
        with pytest.raises(PrerequisiteError, match="see that it is there"):
            use()
    assert list(storage.root.iterdir()) == []
    Storage(storage.root)
    with pytest.raises(PrerequisiteError, match="another storage lies there now"):
        storage.open_attempt(cell, 1)
    shutil.rmtree(storage.root)
    away.rename(storage.root)
    assert storage.open_attempt(cell, 1).number == 1


def test_a_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage(Path("results/storage")).root == tmp_path / "results" / "storage"


def test_a_label_may_hold_anything(storage: Storage) -> None:
    cell = replace(make_cell(), label='a/b "c" ä')
    assert '"a/b \\"c\\" \\u00e4"' in (storage.open_attempt(cell, 1).directory / "cell.json").read_text()
