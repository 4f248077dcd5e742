"""The storage root that every node sees: checkpoints, attempts, leases. It is the truth; everything else is a view.

checkpoints/<quantize_key>/     finished checkpoints, the manifest being the commit
attempts/<key>-<number>/        one try at a cell: cell.json, log.txt, quantize.json, and result.json when it ended
leases/<sweep>.json             which driver works on a sweep
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from orchestrator.cell import Cell, CellStatus
from workers.api import AttemptResult, Failure, FailureKind, Manifest, QuantizeResult, from_json, to_json
from workers.errors import LockedError, PrerequisiteError

KEY_DIGITS = 16
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Attempt:
    """One try at a cell as the storage has it. result is null while it is open."""

    directory: Path
    number: int
    result: AttemptResult | None

    @property
    def name(self) -> str:
        return self.directory.name


@dataclass(frozen=True)
class CellState:
    """Where a cell stands, and its attempts, oldest first."""

    status: CellStatus
    attempts: tuple[Attempt, ...]

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None


class Storage:
    """Paths and files under one root. Raises PrerequisiteError when the root cannot be written."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        try:
            for name in ("checkpoints", "attempts", "leases"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PrerequisiteError(
                f"storage {root}: {error.strerror}; give a directory that can be written: cluster.storage=<directory>"
            ) from error

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def checkpoint(self, quantize_key: str) -> Path:
        """Where a finished checkpoint lies."""
        return self.root / "checkpoints" / quantize_key

    def manifest(self, quantize_key: str) -> Manifest | None:
        """The manifest of a finished checkpoint, or null."""
        path = self.checkpoint(quantize_key) / "manifest.json"
        return from_json(Manifest, path.read_text(encoding="utf-8")) if path.exists() else None

    def has_checkpoint(self, quantize_key: str) -> bool:
        """Whether every file of the manifest is there. Contents are hashed by the worker that reads them."""
        manifest = self.manifest(quantize_key)
        directory = self.checkpoint(quantize_key)
        return manifest is not None and all((directory / file).exists() for file in manifest.files)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def attempts(self) -> dict[str, tuple[Attempt, ...]]:
        """All attempts by the first digits of their cell's key, oldest first."""
        found: dict[str, list[Attempt]] = {}
        for directory in sorted((self.root / "attempts").iterdir()):
            key, _, number = directory.name.partition("-")
            found.setdefault(key, []).append(Attempt(directory, int(number), read_result(directory)))
        return {key: tuple(sorted(tries, key=lambda a: a.number)) for key, tries in found.items()}

    def states(self, cells: list[Cell]) -> dict[str, CellState]:
        """The state of each cell by its key. An open attempt reads as RUNNING."""
        attempts = self.attempts()
        return {cell.key: _state(cell, attempts.get(cell.key[:KEY_DIGITS], ())) for cell in cells}

    def open_attempt(self, cell: Cell) -> Attempt:
        """A new attempt directory; its number is one more than the last, by exclusive create."""
        number = 1
        while True:
            directory = self.root / "attempts" / f"{cell.key[:KEY_DIGITS]}-{number:03d}"
            try:
                directory.mkdir()
                break
            except FileExistsError:
                number += 1
        record = {"label": cell.label, "evaluate_key": cell.evaluate_key, "payload": cell.payload}
        (directory / "cell.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return Attempt(directory, number, None)

    # --- one driver per sweep ----------------------------------------------------------------------------------------

    def lease(self, sweep: str) -> "Lease":
        """The right to drive a sweep."""
        return Lease(self.root / "leases" / f"{sweep}.json")


def end_attempt(directory: Path, cell: Cell, status: CellStatus, failure: Failure | None) -> AttemptResult:
    """Write the result of an attempt whose worker could not; a result that is already there stands."""
    quantize = directory / "quantize.json"
    result = AttemptResult(
        evaluate_key=cell.evaluate_key,
        quantize_key=cell.quantize_key,
        status=status.value,
        failure=failure,
        quantize=from_json(QuantizeResult, quantize.read_text(encoding="utf-8")) if quantize.exists() else None,
    )
    temporary = directory / f".result.{os.getpid()}"
    temporary.write_text(to_json(result), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(temporary, directory / "result.json")
    temporary.unlink()
    written = read_result(directory)
    assert written is not None
    return written


def read_result(directory: Path) -> AttemptResult | None:
    """The attempt's result, or null while it is open."""
    path = directory / "result.json"
    return from_json(AttemptResult, path.read_text(encoding="utf-8")) if path.exists() else None


def lost(stage: str, message: str) -> Failure:
    """The failure of an attempt nobody can speak for any more."""
    return Failure(stage=stage, kind=FailureKind.WORKER_LOST, message=message)


def _state(cell: Cell, attempts: tuple[Attempt, ...]) -> CellState:
    if cell.support is not None:
        return CellState(cell.support, attempts)
    if not attempts:
        return CellState(CellStatus.PENDING, attempts)
    last = attempts[-1].result
    return CellState(CellStatus.RUNNING if last is None else CellStatus(last.status), attempts)


class Lease:
    """A file with host, pid and heartbeat. Entering raises LockedError while another driver holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lease":
        while True:
            try:
                with self._path.open("x", encoding="utf-8") as file:
                    file.write(self._record())
                break
            except FileExistsError:
                self._refuse_live_holder()
                self._path.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _record(self) -> str:
        return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()})

    def _refuse_live_holder(self) -> None:
        try:
            holder = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return
        here = holder["host"] == socket.gethostname()
        alive = psutil.pid_exists(holder["pid"]) if here else time.time() - holder["heartbeat"] < STALE_SECONDS
        if alive:
            raise LockedError(
                f"sweep {self._path.stem} is being driven by process {holder['pid']} on {holder['host']}; wait for it, "
                "or stop it there (Ctrl-C) and run the same command again"
            )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            temporary = self._path.with_suffix(".beat")
            temporary.write_text(self._record(), encoding="utf-8")
            temporary.replace(self._path)
