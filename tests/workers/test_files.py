"""Files written once or replaced, locks that end with their process, and file systems that offer neither."""

import errno
import fcntl
import multiprocessing
import os
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from workers import files
from workers.files import claim_name, create, locked, replace, unfit_reason


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_created_once_and_replaced_as_often_as_one_likes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert create(path, "first") and not create(path, "second")
    assert path.read_text() == "first"
    replace(path, "third")
    assert path.read_text() == "third" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [create, replace])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "there").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    for name in ("there", "new"):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / name, "after")  # type: ignore[operator]
    assert names(tmp_path) == ["there"] and (tmp_path / "there").read_text() == "before"


def test_a_directory_takes_a_free_name_only(tmp_path: Path) -> None:
    for name in ("first", "second", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    assert claim_name(tmp_path / "first", tmp_path / "free")
    assert not claim_name(tmp_path / "second", tmp_path / "full")
    assert not claim_name(tmp_path / "second", tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        claim_name(tmp_path / "second", tmp_path / "nowhere" / "name")


# --- locks -----------------------------------------------------------------------------------------------------------


def hold(path: Path, held: Event) -> None:
    with locked(path):
        held.set()
        threading.Event().wait()


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", held))
    process.start()
    assert held.wait(10)
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass
    process.kill()
    process.join()
    with locked(tmp_path / "lock", wait=False):
        pass


def test_who_waited_for_a_lock_file_that_is_removed_locks_the_one_that_is_there(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()

    def second() -> None:
        with locked(path):
            order.append("second")
            with pytest.raises(BlockingIOError), locked(path, wait=False):
                pass

    waiting = threading.Thread(target=second)
    with locked(path):
        waiting.start()
        waiting.join(0.2)
        path.unlink()
        order.append("first")
    waiting.join()
    assert order == ["first", "second"] and path.exists()


# --- file systems ----------------------------------------------------------------------------------------------------


def test_an_ordinary_file_system_will_do_and_is_left_as_it_was(tmp_path: Path) -> None:
    assert unfit_reason(tmp_path) is None
    assert names(tmp_path) == []


def test_what_a_file_system_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for where, name, answer, reason in (
        (os, "link", unsupported, "its file system has no hard links (Operation not supported)"),
        (fcntl, "flock", unsupported, "its file system has no locks (Operation not supported)"),
        (fcntl, "flock", lambda *arguments: None, "two can hold one lock"),
        (os, "link", lambda *arguments: None, "two can create one file"),
        (files, "claim_name", lambda *arguments: True, "a directory can be renamed to a name in use"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, answer)
            assert unfit_reason(tmp_path) == reason
        assert names(tmp_path) == []


def test_where_nothing_can_be_written_the_system_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unfit_reason(tmp_path / "nowhere")
