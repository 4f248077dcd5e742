"""A defect of ours: the traceback goes to a log, the user gets one message."""

import datetime
import os
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from workers.redaction import Redactor, secret_values

EXIT_CODE = 70  # as sysexits.h calls an internal error; a worker process that cannot go on ends with it too
LOG = "ptqbench.log"
MAX_LOG = 1_000_000  # bytes; what is older goes to ptqbench.log.1, once
MAX_TRACEBACK = 100_000  # characters: its end says what happened


def report(error: BaseException, arguments: Sequence[str]) -> str:
    """Keep the traceback of an unexpected error, secrets masked; returns what to tell the user."""
    mask = Redactor(secret_values(os.environ))
    moment = datetime.datetime.now().isoformat(" ", "seconds")
    trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    text = mask(f"{moment} ptqbench {shlex.join(arguments)}\n{trace}\n")
    what = " ".join(mask(f"{type(error).__name__}: {error}").split())[:500]
    return (
        f"{what}\n  this is a defect of ptqbench, not of your configuration; the traceback is in {_append(text)}\n"
        "  what was finished is kept: try the same command again; if it ends the same way, report it with that file"
    )


def _append(text: str) -> Path:
    """The log that took the text: under results/, or where that cannot be written in the temporary directory."""
    for directory in (Path("results").absolute(), Path(tempfile.gettempdir())):
        path = directory / LOG
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > MAX_LOG:
                path.replace(path.with_name(f"{LOG}.1"))
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return Path(os.devnull)
