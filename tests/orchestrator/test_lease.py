"""One driver per sweep: who is refused, who takes over, and that two who try at once do not both succeed.

Hosts that are not this one are records written here, with clocks as right or wrong as a test wants them.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
import pytest

from orchestrator import lease as leases
from orchestrator.lease import FRESH_SECONDS, Lease, is_held
from workers.errors import LockedError, PrerequisiteError
from workers.files import replace

NOBODY = 2**22 + 1  # no process has this number
REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from orchestrator.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "mini"


@contextmanager
def another_driver(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until its input is closed."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def left_behind(directory: Path, **record: object) -> Path:
    """The lease of a driver that did not release it."""
    directory.mkdir(exist_ok=True)
    path = directory / "000001.json"
    path.write_text(json.dumps(vars(leases._this_process()) | {"pid": NOBODY} | record))
    return path


@contextmanager
def another_host(directory: Path, clock: float, *, beats: bool) -> Iterator[Path]:
    """A driver elsewhere whose clock is `clock` seconds ahead of ours."""
    path = left_behind(directory, host="elsewhere", machine="another boot", heartbeat=time.time() + clock)
    record, stop = json.loads(path.read_text()), threading.Event()

    def beat() -> None:
        while not stop.wait(0.02):
            replace(path, json.dumps(record | {"heartbeat": time.time() + clock}))

    thread = threading.Thread(target=beat)
    if beats:
        thread.start()
    yield path
    stop.set()
    if beats:
        thread.join()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- who is refused --------------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_by_name(directory: Path) -> None:
    with another_driver(directory) as other, pytest.raises(LockedError) as refused, Lease(directory):
        pass
    assert f"sweep mini is being driven by process {other.pid} on {socket.gethostname()}" in str(refused.value)


def test_a_second_driver_in_the_same_process_is_refused(directory: Path) -> None:
    with Lease(directory), pytest.raises(LockedError), Lease(directory):
        pass


def test_another_sweep_is_free(directory: Path) -> None:
    with Lease(directory), Lease(directory.with_name("other")):
        pass


def test_a_driver_elsewhere_whose_heart_has_just_beaten_is_believed(directory: Path) -> None:
    with (
        another_host(directory, -FRESH_SECONDS / 2, beats=False),
        pytest.raises(LockedError, match=f"by process {NOBODY} on elsewhere"),
        Lease(directory),
    ):
        pass


@pytest.mark.parametrize("clock", [-1e6, -FRESH_SECONDS - 10, 10, 1e6])
@pytest.mark.parametrize("beats", [True, False])
def test_no_clock_decides_whether_a_driver_elsewhere_lives(
    directory: Path, monkeypatch: pytest.MonkeyPatch, clock: float, beats: bool
) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 2.0 if beats else 0.2)
    with another_host(directory, clock, beats=beats):
        assert is_held(directory, 1) is beats


def test_a_driver_that_releases_its_lease_while_it_is_watched_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 60.0)
    with another_host(directory, -1e6, beats=False) as path:
        record = json.loads(path.read_text()) | {"released": True}
        threading.Timer(0.1, replace, (path, json.dumps(record))).start()
        assert not is_held(directory, 1)


def test_a_clock_that_is_set_does_not_make_a_driver_here_look_dead(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_driver(directory):
        now = time.time
        for jump in (-1e6, 1e6):
            monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
            assert is_held(directory, 1)


# --- who takes over --------------------------------------------------------------------------------------------------


def test_a_released_lease_can_be_taken_again_and_leaves_one_file(directory: Path) -> None:
    for _ in range(3):
        with Lease(directory):
            pass
    assert names(directory) == ["000003.json"]


def test_an_error_releases_the_lease(directory: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(directory):
        _ = 1 / 0
    with Lease(directory):
        pass


def test_the_lease_of_a_killed_driver_is_taken_over_at_once(directory: Path) -> None:
    with another_driver(directory) as other:
        other.send_signal(signal.SIGKILL)
        psutil.Process(other.pid).wait(timeout=10)
    with Lease(directory):
        assert names(directory) == ["000002.json"]


def test_a_killed_driver_nobody_has_reaped_counts_as_dead(directory: Path) -> None:
    with another_driver(directory) as other:
        other.send_signal(signal.SIGKILL)
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with Lease(directory):
            pass


def test_a_process_that_only_has_the_drivers_number_is_not_the_driver(directory: Path) -> None:
    ticks = leases._this_process().start_ticks
    left_behind(directory, pid=os.getpid(), start_ticks=ticks - 1)
    with Lease(directory):
        pass


def test_a_driver_before_this_machine_was_started_again_is_taken_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.2)
    left_behind(directory, pid=os.getpid(), machine="an earlier boot", heartbeat=time.time() - 3600)
    with Lease(directory) as lease:
        assert lease.number == 2


def test_a_driver_elsewhere_whose_heart_stopped_is_taken_over(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCH_SECONDS", 0.2)
    with another_host(directory, -FRESH_SECONDS - 1, beats=False), Lease(directory):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "elsewhere"}'])
def test_a_damaged_lease_is_taken_over(directory: Path, content: str) -> None:
    left_behind(directory).write_text(content)
    with Lease(directory):
        pass


def test_the_heart_beats(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with Lease(directory):
        path = directory / "000001.json"
        first = json.loads(path.read_text())["heartbeat"]
        wait_until(lambda: json.loads(path.read_text())["heartbeat"] > first)


def test_a_driver_that_was_taken_over_is_interrupted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)

    def drive() -> None:
        with Lease(directory):
            left_behind(directory, host="elsewhere", pid=7).rename(directory / "000002.json")
            wait_until(lambda: False)

    with pytest.raises(LockedError, match="sweep mini was taken over by process 7 on elsewhere"):
        drive()
    assert json.loads((directory / "000002.json").read_text())["host"] == "elsewhere"


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- who tries at once -----------------------------------------------------------------------------------------------


def try_to_hold(directory: Path, all_ready: Barrier, all_tried: Barrier, winners: "multiprocessing.Queue[int]") -> None:
    all_ready.wait()
    try:
        with Lease(directory):
            winners.put(os.getpid())
            all_tried.wait()
    except LockedError:
        all_tried.wait()


@pytest.mark.parametrize("stale", [True, False])
def test_of_many_who_try_at_once_one_wins(directory: Path, stale: bool) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        if stale:
            left_behind(directory)
        all_ready, all_tried, winners = context.Barrier(6), context.Barrier(6), context.Queue()
        processes = [
            context.Process(target=try_to_hold, args=(directory, all_ready, all_tried, winners)) for _ in range(6)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [p.exitcode for p in processes] == [0] * 6
        assert winners.get(timeout=5) > 0
        assert winners.empty()


class _SlowLease(Lease):
    """One that others overtake between its look at a stale lease and its own try."""

    def overtaken_by(self, others: Callable[[], None]) -> "_SlowLease":
        self._others: Callable[[], None] | None = others
        return self

    def _refuse_live_holder(self, number: int) -> None:
        super()._refuse_live_holder(number)
        if self._others is not None:
            others, self._others = self._others, None
            others()


def test_who_is_overtaken_while_looking_is_refused(directory: Path) -> None:
    left_behind(directory)
    faster = Lease(directory)
    with pytest.raises(LockedError), _SlowLease(directory).overtaken_by(lambda: enter(faster)):
        pass
    faster.__exit__(None, None, None)
    assert names(directory) == ["000002.json"]


def test_who_is_overtaken_twice_does_not_win_with_a_number_that_is_free_again(directory: Path) -> None:
    left_behind(directory)
    second = Lease(directory)

    def others() -> None:
        with Lease(directory):
            pass
        enter(second)
        assert names(directory) == ["000003.json"]

    with pytest.raises(LockedError), _SlowLease(directory).overtaken_by(others):
        pass
    assert names(directory) == ["000003.json"]
    second.__exit__(None, None, None)


def enter(lease: Lease) -> None:
    lease.__enter__()


def test_a_storage_that_cannot_be_written_is_a_missing_prerequisite(directory: Path) -> None:
    directory.write_text("a file")
    with pytest.raises(PrerequisiteError, match=r"cluster\.storage=<directory>"), Lease(directory):
        pass
