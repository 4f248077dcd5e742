"""The storage root that every node sees: checkpoints, attempts, leases. It is the truth; everything else is a view.

checkpoints/<quantize_key>/     finished checkpoints, the manifest being the commit
attempts/<key>-<number>/        one try at a cell: cell.json, log.txt, quantize.json, and result.json when it ended
leases/<sweep>/                 which driver works on a sweep (lease.py)
leases/<quantize_key>.lock      who makes a checkpoint now (workers/checkpoint.py)
statistics/<key>/               what calibration says of blocks, for other cells (workers/shared_statistics.py)
needs/                          which checkpoints the sweeps of every results/ directory need (needs.py)
id                              what tells this storage from others

Other things lying there are left alone. The file system must have hard links, renames that replace nothing, and locks.

Several drivers may want one cell. Opening an attempt is taking the number after the last one seen, which only one of
them can; who comes second leaves the cell to the other. So no two attempts of one cell are ever open at once, unless a
driver is dead, and whoever takes its cell over first ends what it left.
"""

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cell import Cell, CellStatus
from orchestrator.io_errors import explained
from orchestrator.lease import Lease, holder_of, is_held
from workers.api import AttemptResult, Failure, FailureKind, Manifest, QuantizeResult, from_json, to_json
from workers.errors import PrerequisiteError
from workers.files import claim_name, create
from workers.layout import MANIFEST, checkpoint_directory, statistics_directory

KEY_DIGITS = 16
ATTEMPT_NAME = re.compile(rf"([0-9a-f]{{{KEY_DIGITS}}})-([0-9]{{3,}})")
CELL, QUANTIZE, RESULT = "cell.json", "quantize.json", "result.json"
MARKER = "id"


class AttemptTaken(Exception):
    """Another driver has opened an attempt at the cell since this one looked."""


@dataclass(frozen=True)
class DriverName:
    """Who opened an attempt: the sweep and the number of its lease."""

    sweep: str
    lease: int


@dataclass(frozen=True)
class Attempt:
    """One try at a cell as the storage has it. result is null while it is open; driver is null where none is known."""

    directory: Path
    number: int
    result: AttemptResult | None
    driver: DriverName | None = None

    @property
    def name(self) -> str:
        return self.directory.name


@dataclass(frozen=True)
class CellState:
    """Where a cell stands, its attempts, oldest first, and the number of the next.

    A cell that has succeeded stays so, whatever was tried again later.
    """

    status: CellStatus
    attempts: tuple[Attempt, ...]
    next_number: int = 1

    @property
    def last(self) -> Attempt | None:
        """The attempt that says where the cell stands: the last that succeeded, else the last."""
        return next(filter(_succeeded, reversed(self.attempts)), self.attempts[-1] if self.attempts else None)


class Storage:
    """Paths and files under one root. Raises PrerequisiteError when the root cannot be used, or is no longer there.

    id: what was written into the storage when it was first used. Another directory under the same path, such as the
    empty one below a file system that is not mounted now, is thereby known to be another.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._driver: DriverName | None = None
        self._ended: dict[str, Attempt] = {}  # results are written once, and a driver looks every few seconds
        with _explained(self.root):
            for name in ("checkpoints", "attempts", "leases"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            if not (self.root / MARKER).exists():
                create(self.root / MARKER, uuid.uuid4().hex)
            self.id = (self.root / MARKER).read_text(encoding="utf-8")

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        with _explained(self.root):
            if (self.root / MARKER).read_text(encoding="utf-8") != self.id:
                raise PrerequisiteError(
                    f"storage {self.root}: another storage lies there now; put back the one this command began with "
                    "(is it mounted?), then run the same command again; what was finished is kept"
                )
            yield

    def check(self) -> None:
        """Raise PrerequisiteError unless the storage is still there."""
        with self._usable():
            pass

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def checkpoint(self, quantize_key: str) -> Path:
        """Where a finished checkpoint lies."""
        return checkpoint_directory(self.root, quantize_key)

    def manifest(self, quantize_key: str) -> Manifest | None:
        """The manifest of a finished checkpoint, or null; one that cannot be read finishes nothing."""
        with _explained(self.root):
            path = self.checkpoint(quantize_key) / MANIFEST
            try:
                return from_json(Manifest, path.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                return None

    def has_checkpoint(self, quantize_key: str) -> bool:
        """Whether every file of the manifest is there. Contents are hashed by the worker that reads them."""
        manifest = self.manifest(quantize_key)
        directory = self.checkpoint(quantize_key)
        return manifest is not None and all((directory / file).exists() for file in manifest.files)

    @property
    def statistics(self) -> Path:
        """Where statistics lie that cells share; there is nothing before the first is kept."""
        return statistics_directory(self.root)

    def statistics_bytes(self) -> int:
        """How much of them there is now."""
        with _explained(self.root):
            return num_bytes(self.statistics)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def states(self, cells: list[Cell]) -> dict[str, CellState]:
        """The state of each cell by its key. A cell with an open attempt reads as RUNNING unless it has succeeded."""
        directories = self._attempt_directories()
        with self._usable():
            return {cell.key: self._state(cell, directories.get(cell.key[:KEY_DIGITS], {})) for cell in cells}

    def _state(self, cell: Cell, directories: dict[int, Path]) -> CellState:
        attempts, number = self._attempts(directories), 1 + max(directories, default=0)
        return CellState(cell.support or _status(attempts), attempts, number)

    def _attempts(self, directories: dict[int, Path]) -> tuple[Attempt, ...]:
        """Oldest first. What has no cell.json never became an attempt; one that has ended is read once."""
        found = []
        for number, directory in sorted(directories.items()):
            attempt = self._ended.get(directory.name) or _read_attempt(directory, number)
            if attempt is not None:
                found.append(attempt)
                if attempt.result is not None:
                    self._ended[attempt.name] = attempt
        return tuple(found)

    def open_attempt(self, cell: Cell, number: int) -> Attempt:
        """A new attempt, which appears whole or not at all. number: the `next_number` of the cell's state.

        Raises AttemptTaken when that number is in use by now.
        """
        record = {
            "label": cell.label,
            "evaluate_key": cell.evaluate_key,
            "payload": cell.payload,
            "driver": None if self._driver is None else vars(self._driver),
        }
        draft = self.root / "attempts" / f".{uuid.uuid4().hex}"
        directory = draft.with_name(attempt_name(cell.key, number))
        with self._usable():
            draft.mkdir()
            try:
                (draft / CELL).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                if not claim_name(draft, directory):
                    raise AttemptTaken(directory.name)
            except (OSError, AttemptTaken):
                shutil.rmtree(draft, ignore_errors=True)
                raise
        return Attempt(directory, number, None, self._driver)

    def end_abandoned(self, cells: list[Cell]) -> int:
        """End the open attempts of dead drivers as WORKER_LOST. Returns how many there were.

        A driver on another host whose heart seems to have stopped is watched before it is called dead.
        """
        alive: dict[DriverName | None, bool] = {None: False}
        count = 0
        for cell, state in zip(cells, self.states(cells).values(), strict=True):
            for attempt in state.attempts:
                if attempt.result is not None:
                    continue
                if attempt.driver is not None and attempt.driver not in alive:
                    alive[attempt.driver] = self._is_alive(attempt.driver)
                if not alive[attempt.driver]:
                    message = "the driver of this attempt went down before it ended"
                    end_attempt(
                        attempt.directory, cell, CellStatus.FAILED, lost(open_stage(attempt.directory), message)
                    )
                    count += 1
        return count

    def _is_alive(self, driver: DriverName) -> bool:
        with self._usable():
            return is_held(self.root / "leases" / driver.sweep, driver.lease)

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

    @contextlib.contextmanager
    def driving(self, sweep: str) -> Iterator[None]:
        """Hold a sweep's lease; attempts opened meanwhile are this driver's. Raises LockedError."""
        with self.lease(sweep) as lease:
            self._driver = DriverName(sweep, lease.number)
            try:
                yield
            finally:
                self._driver = None

    def driver_of(self, sweep: str) -> str:
        """Who drives a sweep, in words."""
        with self._usable():
            return f"sweep {sweep}, {holder_of(self.root / 'leases' / sweep)}"


def num_bytes(directory: Path) -> int:
    """Bytes of all files below a directory; 0 where there is none. A file that goes meanwhile is not counted."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def storage_id(root: Path) -> str | None:
    """What tells the storage at `root` from others, or null where there is none."""
    try:
        return (root / MARKER).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def attempt_name(key: str, number: int) -> str:
    """The directory of a cell's n-th attempt."""
    return f"{key[:KEY_DIGITS]}-{number:03d}"


def end_attempt(directory: Path, cell: Cell, status: CellStatus, failure: Failure | None) -> AttemptResult:
    """Write the result of an attempt whose worker could not; a result that is already there stands and is returned."""
    result = AttemptResult(
        evaluate_key=cell.evaluate_key,
        quantize_key=cell.quantize_key,
        status=status.value,
        failure=failure,
        quantize=read_quantize(directory),
    )
    with _explained(directory.parents[1]):
        create(directory / RESULT, to_json(result))
    written = read_result(directory)
    assert written is not None
    return written


def open_stage(directory: Path) -> str:
    """The stage an open attempt is in: quantize | evaluate."""
    return "evaluate" if (directory / QUANTIZE).exists() else "quantize"


def read_quantize(directory: Path) -> QuantizeResult | None:
    """What the quantize stage of an attempt left; null when it found the checkpoint made, or did not end."""
    with _explained(directory.parents[1]):
        try:
            return from_json(QuantizeResult, (directory / QUANTIZE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


def read_result(directory: Path) -> AttemptResult | None:
    """The attempt's result, or null while it is open. One that cannot be read speaks for nobody: WORKER_LOST."""
    path = directory / RESULT
    with _explained(directory.parents[1]):
        try:
            return from_json(AttemptResult, path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            failure = lost(open_stage(directory), f"{path} is damaged: {error}")
            return AttemptResult("", "", CellStatus.FAILED.value, failure)


def lost(stage: str, message: str) -> Failure:
    """The failure of an attempt nobody can speak for any more."""
    return Failure(stage=stage, kind=FailureKind.WORKER_LOST, message=message)


def _read_driver(directory: Path) -> DriverName | None:
    """Who opened an attempt, or null where its cell.json does not say."""
    try:
        record = json.loads((directory / CELL).read_text(encoding="utf-8"))
        return from_json(DriverName, json.dumps(record["driver"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _read_attempt(directory: Path, number: int) -> Attempt | None:
    if not (directory / CELL).exists():
        return None
    result = read_result(directory)
    return Attempt(directory, number, result, _read_driver(directory) if result is None else None)


def _status(attempts: tuple[Attempt, ...]) -> CellStatus:
    if not attempts:
        return CellStatus.PENDING
    if any(map(_succeeded, attempts)):
        return CellStatus.SUCCEEDED
    if any(attempt.result is None for attempt in attempts):
        return CellStatus.RUNNING
    last = attempts[-1].result
    assert last is not None
    return CellStatus(last.status)


def _succeeded(attempt: Attempt) -> bool:
    return attempt.result is not None and attempt.result.status == CellStatus.SUCCEEDED


def _explained(root: Path) -> contextlib.AbstractContextManager[None]:
    return explained(f"storage {root}", "give another directory: cluster.storage=<directory>")
