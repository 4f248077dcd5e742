"""One driver per sweep: leases/<sweep>/<number>.json with host, pid and heartbeat; the highest number holds.

Taking over is creating the next number, which only one of several can do; no number is ever reused, so neither a driver
that was only slow nor a second one that saw the same stale lease can hold what another has taken.
"""

import contextlib
import os
import socket
import threading
import time
from _thread import interrupt_main
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from workers.api import from_json, to_json
from workers.errors import LockedError, PrerequisiteError
from workers.files import create, replace

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
CLOCK_SECONDS = 5.0  # start times of one process, asked for twice, agree this well


@dataclass(frozen=True)
class _Holder:
    """What a lease says. started, heartbeat: seconds since the epoch."""

    host: str
    pid: int
    started: float
    heartbeat: float
    released: bool


class Lease:
    """The right to drive a sweep. Entering raises LockedError while another driver is alive.

    A driver that finds itself taken over (it was out of touch for `STALE_SECONDS`) is interrupted like by Ctrl-C.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self._directory.mkdir(exist_ok=True)
            while not self._number:
                self._number = self._claim()
        except OSError as error:
            raise PrerequisiteError(
                f"cannot write the lease {self._directory}: {error.strerror}; give a directory that can be written: "
                "cluster.storage=<directory>"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # what cannot be released is stale once this process has ended
            replace(self._path(self._number), to_json(_this_process(released=True)))

    def _claim(self) -> int:
        """The number that was taken, or 0 when another was faster."""
        latest = self._latest()
        self._refuse_live_holder(latest)
        path = self._path(latest + 1)
        if not create(path, to_json(_this_process())):
            return 0
        if self._latest() != latest + 1:  # this number had been taken, left and removed since `latest` was read
            path.unlink()
            return 0
        for number in self._numbers():
            if number <= latest:
                self._path(number).unlink(missing_ok=True)
        return latest + 1

    def _refuse_live_holder(self, number: int) -> None:
        try:
            holder = from_json(_Holder, self._path(number).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if not holder.released and _is_alive(holder):
            raise LockedError(
                f"sweep {self._directory.name} is being driven by process {holder.pid} on {holder.host}; wait for it, "
                "or stop it there (Ctrl-C) and run the same command again"
            )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a storage that does not answer now may do so at the next beat
                if self._latest() > self._number:
                    interrupt_main()
                    return
                replace(self._path(self._number), to_json(_this_process()))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:06d}.json"

    def _latest(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> set[int]:
        return {int(path.stem) for path in self._directory.glob("*.json") if path.stem.isdecimal()}


def _this_process(*, released: bool = False) -> _Holder:
    return _Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time(), time.time(), released)


def _is_alive(holder: _Holder) -> bool:
    """On this host its process exists (not another one with its number); elsewhere its heartbeat is fresh."""
    if holder.host != socket.gethostname():
        return time.time() - holder.heartbeat < STALE_SECONDS
    try:
        process = psutil.Process(holder.pid)
        same = abs(process.create_time() - holder.started) < CLOCK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
