"""The process that writes an attempt's log.txt: secrets masked, and of too much output the middle left out.

It reads what a worker and its children print from a pipe until the last of them has closed it. So it outlives a killed
worker and keeps its last words, and what an engine's processes print while a cell is scored lands in that cell's log.
Whatever happens to the file, it goes on reading: nobody who prints may wait for a full disk.

Started by `workers/attempt_log.py`, which speaks to it in lines of JSON: {"path": str} begins a log, {"hide": [str]}
names values to mask, {} only asks for an answer. The answer, an empty line, says that all printed before is written.
"""

import contextlib
import fcntl
import json
import os
import select
import sys
import termios
from typing import Any

from workers.redaction import Redactor

STAGE_BYTES = 4 * 2**20  # kept of one stage; an attempt has two
READ_BYTES = 2**16
QUIET_SECONDS = 1.0  # after which a line without an end is written: Ray kills this process with the worker it stops
MARGIN_BYTES = 4096  # held back of a line without an end: a secret of a known form may have begun in them


class BoundedLog:
    """A part of a file behind what was there already: never more than `limit` bytes, of which the first half stays."""

    def __init__(self, path: str, limit: int = STAGE_BYTES) -> None:
        self._path, self._limit = path, limit
        self._file: int | None = None
        self._start = self._size = 0  # where this part begins and ends in the file
        self._middle: int | None = None  # where the first half ends, once something was left out
        self._note_bytes = self._omitted = self._unwritten = 0

    def append(self, data: bytes) -> None:
        """Write; what the file system refuses is dropped, and how much it was is told once there is room again."""
        piece_bytes = max(1, self._limit // 8)
        pieces = [data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)]
        try:
            self._open()
            if self._unwritten and pieces:
                self._write(f"[{self._unwritten} bytes of output could not be written here]\n".encode())
                self._unwritten = 0
            while pieces:
                self._write(pieces[0])
                del pieces[0]
        except OSError:
            self._unwritten += sum(map(len, pieces))

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)

    def _open(self) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._start = self._size = os.fstat(self._file).st_size

    def _write(self, data: bytes) -> None:
        if self._size - self._start + len(data) > self._limit:
            self._leave_out_the_middle()
        self._put(data)

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        while data:
            count = os.write(self._file, data)
            self._size += count
            data = data[count:]

    def _leave_out_the_middle(self) -> None:
        """Keep the first half and the last quarter, cut at line ends, and say between them how much is missing."""
        assert self._file is not None
        if self._middle is None:
            head = os.pread(self._file, self._limit // 2, self._start)
            self._middle = self._start + (head.rfind(b"\n") + 1 or len(head))
        tail = os.pread(self._file, self._limit // 4, max(self._middle, self._size - self._limit // 4))
        tail = tail[tail.find(b"\n") + 1 :]
        self._omitted += self._size - self._middle - self._note_bytes - len(tail)
        note = f"\n[{self._omitted} bytes of output are left out here]\n".encode()
        os.ftruncate(self._file, self._middle)
        self._size, self._note_bytes = self._middle, 0
        self._put(note + tail)
        self._note_bytes = len(note)


class Output:
    """What is printed, line by line through the mask into a log. Before the first log it is dropped."""

    def __init__(self) -> None:
        self._mask = Redactor([])
        self._log: BoundedLog | None = None
        self._rest = b""  # of a line that has not ended; a carriage return ends one too

    @property
    def has_unfinished_line(self) -> bool:
        """Whether something waits for the end of its line."""
        return bool(self._rest)

    def obey(self, message: dict[str, Any]) -> None:
        """A line of the worker's."""
        self.flush()
        if "path" in message:
            self.close()
            self._log = BoundedLog(message["path"])
        if "hide" in message:
            self._mask = Redactor(message["hide"])

    def feed(self, data: bytes) -> None:
        """More output."""
        self._rest += data
        end = 1 + max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r"))
        self._keep(self._rest[:end])
        self._rest = self._rest[end:]
        if len(self._rest) > READ_BYTES:
            margin = max(MARGIN_BYTES, self._mask.longest_bytes)
            masked = self._masked(self._rest)
            self._keep(masked[:-margin])
            self._rest = masked[-margin:]

    def flush(self) -> None:
        """Write the line that has not ended."""
        self._keep(self._rest)
        self._rest = b""

    def close(self) -> None:
        """Nothing more comes for this log."""
        self.flush()
        if self._log is not None:
            self._log.close()

    def _keep(self, data: bytes) -> None:
        if data and self._log is not None:
            self._log.append(self._masked(data))

    def _masked(self, data: bytes) -> bytes:
        return self._mask(data.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def run(output: int, control: int) -> None:
    """Write what comes from one file descriptor as the other says, until the first is at its end."""
    kept = Output()
    sources = [output, control]
    while output in sources:
        ready, _, _ = select.select(sources, [], [], QUIET_SECONDS if kept.has_unfinished_line else None)
        if not ready:
            kept.flush()
        elif control in ready:
            line = _line(control)
            if not line:
                sources.remove(control)
                continue
            kept.feed(_waiting(output))
            kept.obey(json.loads(line))
            with contextlib.suppress(OSError):
                os.write(control, b"\n")
        else:
            data = os.read(output, READ_BYTES)
            if not data:
                sources.remove(output)
            kept.feed(data)
    kept.close()


def _line(descriptor: int) -> bytes:
    """A whole line; nothing when the other end is gone."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            data = os.read(descriptor, READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            return b""
        line += data
    return line


def _waiting(descriptor: int) -> bytes:
    """What lies in a pipe now, without waiting for more."""
    count = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def main() -> None:
    """Standard input is the output of others; the argument is the file descriptor on which the worker speaks."""
    run(0, int(sys.argv[1]))
