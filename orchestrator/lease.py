"""One driver per sweep: leases/<sweep>/<number>.json with host, process and heartbeat; the highest number holds.

Taking over is creating the next number, which only one of several can do; no number is ever reused, so neither a driver
that was only slow nor a second one that saw the same stale lease can hold what another has taken.

No clock is trusted: on this machine a process is known by the boot it runs in and the tick it started at, and a
heartbeat from another machine that looks old, or lies in the future, is watched for a while before anyone is called
dead.
"""

import contextlib
import os
import socket
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from orchestrator.io_errors import explained
from workers.api import from_json, to_json
from workers.errors import LockedError
from workers.files import create, replace

HEARTBEAT_SECONDS = 5.0
FRESH_SECONDS = 60.0  # a heartbeat this young is believed without watching
WATCH_SECONDS = 20.0  # a heart that does not beat for so long, by the watcher's clock, has stopped


@dataclass(frozen=True)
class _Holder:
    """What a lease says.

    machine: boot and process namespace. start_ticks: since that boot. heartbeat: seconds since 1970.
    """

    host: str
    pid: int
    machine: str
    start_ticks: int
    heartbeat: float
    released: bool


class Lease:
    """The right to drive a sweep. Entering raises LockedError while another driver is alive.

    A driver that finds itself taken over (it was out of touch for longer than another watched) is interrupted as by
    Ctrl-C, and leaving raises LockedError.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._taken_over = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def number(self) -> int:
        """Which of the sweep's leases this is, from 1; 0 before it is held."""
        return self._number

    def __enter__(self) -> "Lease":
        with explained(f"lease {self._directory}", "give another directory: cluster.storage=<directory>"):
            self._directory.mkdir(exist_ok=True)
            while not self._number:
                self._number = self._claim()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._taken_over:
            raise LockedError(
                f"sweep {self._directory.name} was taken over by {holder_of(self._directory)}, which goes on with it: "
                f"this driver was out of touch with {self._directory} for too long"
            ) from error
        with contextlib.suppress(OSError):  # what cannot be released is stale once this process has ended
            replace(_path(self._directory, self._number), to_json(_this_process(released=True)))

    def _claim(self) -> int:
        """The number that was taken, or 0 when another was faster."""
        latest = self._latest()
        self._refuse_live_holder(latest)
        path = _path(self._directory, latest + 1)
        if not create(path, to_json(_this_process())):
            return 0
        if self._latest() != latest + 1:  # this number had been taken, left and removed since `latest` was read
            path.unlink()
            return 0
        for number in _numbers(self._directory):
            if number <= latest:
                _path(self._directory, number).unlink(missing_ok=True)
        return latest + 1

    def _refuse_live_holder(self, number: int) -> None:
        if is_held(self._directory, number):
            raise LockedError(
                f"sweep {self._directory.name} is being driven by {_spoken(_read(self._directory, number))}; wait for "
                "it, or stop it there (Ctrl-C) and run the same command again"
            )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a storage that does not answer now may do so at the next beat
                if self._latest() > self._number:
                    self._taken_over = True
                    interrupt_main()
                    return
                replace(_path(self._directory, self._number), to_json(_this_process()))

    def _latest(self) -> int:
        return max(_numbers(self._directory), default=0)


def is_held(directory: Path, number: int) -> bool:
    """Whether the driver that took this number of a sweep's leases still drives. May watch for `WATCH_SECONDS`."""
    holder = _read(directory, number)
    if holder is None or holder.released or max(_numbers(directory), default=0) > number:
        return False
    if holder.machine == _machine():
        return _start_ticks(holder.pid) == holder.start_ticks
    if 0 <= time.time() - holder.heartbeat < FRESH_SECONDS:
        return True
    return _beats(holder, lambda: _read(directory, number))


def holder_of(directory: Path) -> str:
    """Who drives a sweep, in words."""
    return _spoken(_read(directory, max(_numbers(directory), default=0)))


def _beats(seen: _Holder, look: Callable[[], _Holder | None]) -> bool:
    """Whether a heart beats, by this host's monotonic clock."""
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        now = look()
        if now is None or now.released:
            return False
        if now.heartbeat != seen.heartbeat:
            return True
    return False


def _read(directory: Path, number: int) -> _Holder | None:
    """What a lease says; null where there is none, or none that can be read."""
    try:
        return from_json(_Holder, _path(directory, number).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _spoken(holder: _Holder | None) -> str:
    return "another driver" if holder is None else f"process {holder.pid} on {holder.host}"


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.json"


def _numbers(directory: Path) -> set[int]:
    return {int(path.stem) for path in directory.glob("*.json") if path.stem.isdecimal()}


def _this_process(*, released: bool = False) -> _Holder:
    ticks = _start_ticks(os.getpid())
    assert ticks is not None
    return _Holder(socket.gethostname(), os.getpid(), _machine(), ticks, time.time(), released)


def _machine() -> str:
    """One boot of one kernel, and the namespace in which a process number means anything."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: no clock that is set changes it. Null when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name before may hold anything
    return None if state in "ZX" else int(rest[18])
