"""The storage root that every node sees: checkpoints, attempts, leases. It is the truth; everything else is a view.

checkpoints/<quantize_key>/     finished checkpoints, the manifest being the commit
attempts/<key>-<number>/        one try at a cell: cell.json, log.txt, quantize.json, and result.json when it ended
leases/<sweep>/                 which driver works on a sweep (lease.py)

Other things lying there are left alone. The file system must have hard links and renames that replace nothing.
"""

import contextlib
import errno
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cell import Cell, CellStatus
from orchestrator.lease import Lease
from workers.api import AttemptResult, Failure, FailureKind, Manifest, QuantizeResult, from_json, to_json
from workers.errors import PrerequisiteError
from workers.files import create

KEY_DIGITS = 16
ATTEMPT_NAME = re.compile(rf"([0-9a-f]{{{KEY_DIGITS}}})-([0-9]{{3,}})")
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # why a directory cannot be renamed to a name in use


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
    """Paths and files under one root. Raises PrerequisiteError when the root cannot be used."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        with self._usable():
            for name in ("checkpoints", "attempts", "leases"):
                (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PrerequisiteError(
                f"storage {self.root}: {error.strerror}; give a directory that can be read and written: "
                "cluster.storage=<directory>"
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

    def states(self, cells: list[Cell]) -> dict[str, CellState]:
        """The state of each cell by its key. An open attempt reads as RUNNING."""
        directories = self._attempt_directories()
        with self._usable():
            return {cell.key: _state(cell, _attempts(directories.get(cell.key[:KEY_DIGITS], {}))) for cell in cells}

    def open_attempt(self, cell: Cell) -> Attempt:
        """A new attempt directory, numbered one more than the last; it appears whole, and two never share one."""
        record = {"label": cell.label, "evaluate_key": cell.evaluate_key, "payload": cell.payload}
        draft = self.root / "attempts" / f".{uuid.uuid4().hex}"
        key = cell.key[:KEY_DIGITS]
        with self._usable():
            draft.mkdir()
            (draft / "cell.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            while True:
                number = 1 + max(self._attempt_directories().get(key, {}), default=0)
                directory = draft.with_name(attempt_name(cell.key, number))
                try:
                    draft.rename(directory)
                    return Attempt(directory, number, None)
                except OSError as error:
                    if error.errno not in TAKEN:
                        raise

    def _attempt_directories(self) -> dict[str, dict[int, Path]]:
        """First digits of a cell's key -> attempt number -> directory."""
        found: dict[str, dict[int, Path]] = {}
        with self._usable():
            for path in (self.root / "attempts").iterdir():
                if match := ATTEMPT_NAME.fullmatch(path.name):
                    found.setdefault(match[1], {})[int(match[2])] = path
        return found

    # --- one driver per sweep ----------------------------------------------------------------------------------------

    def lease(self, sweep: str) -> Lease:
        """The right to drive a sweep."""
        return Lease(self.root / "leases" / sweep)


def attempt_name(key: str, number: int) -> str:
    """The directory of a cell's n-th attempt."""
    return f"{key[:KEY_DIGITS]}-{number:03d}"


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
    create(directory / "result.json", to_json(result))
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


def _attempts(directories: dict[int, Path]) -> tuple[Attempt, ...]:
    """Oldest first. What has no cell.json never became an attempt."""
    return tuple(
        Attempt(directory, number, read_result(directory))
        for number, directory in sorted(directories.items())
        if (directory / "cell.json").exists()
    )


def _state(cell: Cell, attempts: tuple[Attempt, ...]) -> CellState:
    if cell.support is not None:
        return CellState(cell.support, attempts)
    if not attempts:
        return CellState(CellStatus.PENDING, attempts)
    last = attempts[-1].result
    return CellState(CellStatus.RUNNING if last is None else CellStatus(last.status), attempts)
