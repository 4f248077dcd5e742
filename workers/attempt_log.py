"""A stage's end of its log: one pipe for log records and for everything its process and its children print.

At the other end of the pipe is a process of its own (workers/log_writer.py), one for the life of this one, which masks
secrets and bounds the file. It starts in a few hundredths of a second and costs the stage nothing but two answers.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from workers.redaction import secret_values

ANSWER_SECONDS = 10.0  # a writer that needs longer hangs on its storage
PROGRAM = "import sys; sys.path.append(sys.argv[2]); from workers.log_writer import main; main()"
ROOT = Path(__file__).resolve().parents[1]


class LogWriter:
    """The process that writes this one's logs. `output`: the end of the pipe that is printed into."""

    def __init__(self) -> None:
        """Start it. It gets no argument and no environment that could hold a secret."""
        input_end, self.output = os.pipe()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(ANSWER_SECONDS)
        self._healthy = True
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", PROGRAM, str(theirs.fileno()), str(ROOT)],
                stdin=input_end,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                start_new_session=True,  # Ctrl-C is not for it
            )
        threading.Thread(target=self._take_over, args=[input_end], daemon=True, name="attempt log").start()

    @property
    def healthy(self) -> bool:
        """Whether it runs and answers."""
        return self._healthy and self._process.poll() is None

    def tell(self, **message: str | list[str]) -> None:
        """Say what log.txt is, what to hide, or nothing, and wait until all printed so far is written."""
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
            self._healthy = self._healthy and bool(self._control.recv(1))
        except OSError:
            self._healthy = False

    def hide(self, values: Iterable[str]) -> None:
        """Mask these values from now on, instead of those named before."""
        self.tell(hide=list(values))

    def _take_over(self, input_end: int) -> None:
        """If it should die, read in its place and drop it: nobody who prints may wait, or be told of a broken pipe."""
        self._process.wait()
        while os.read(input_end, 2**16):
            pass


_writer: LogWriter | None = None  # of this process


def _running_writer() -> LogWriter:
    global _writer
    if _writer is None or not _writer.healthy:
        _writer = LogWriter()
    return _writer


@contextlib.contextmanager
def attempt_log(path: Path, *, capture_output: bool) -> Iterator[LogWriter]:
    """Log records of `workers`, and with capture_output all that is printed, into `path`, secrets masked.

    A log that cannot be written raises nothing. Children started meanwhile go on printing into the log of the stage
    that is at work then.
    """
    writer = _running_writer()
    writer.tell(path=str(path), hide=secret_values(os.environ))
    handler = logging.StreamHandler(open(writer.output, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("workers")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with _redirected(writer.output) if capture_output else contextlib.nullcontext():
            yield writer
    finally:
        root.removeHandler(handler)
        writer.tell()
        if not writer.healthy:
            _say_incomplete(path)


@contextlib.contextmanager
def _redirected(target: int) -> Iterator[None]:
    """File descriptors 1 and 2 into the pipe, so that prints of C++ libraries and of children land there too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)


def _say_incomplete(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write("[the process that writes this log has ended or hangs; some of this stage's output is missing]\n")
