"""results/<sweep>/: what a sweep was asked for, its table and its report."""

import contextlib
import uuid
from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from orchestrator.execution import RESERVED_NAMES
from orchestrator.io_errors import explained
from orchestrator.storage import Storage, storage_id
from orchestrator.sweep import Sweep
from workers.api import from_json, to_json
from workers.errors import PrerequisiteError
from workers.files import create, replace

DEFAULT_SWEEP = "mini"


@dataclass(frozen=True)
class SweepRecord:
    """How a sweep was started last. overrides: the command line; quantize_keys: checkpoints it needs.

    storage, storage_id: where it ran, and what told that storage from others.
    """

    overrides: list[str]
    quantize_keys: list[str]
    storage: str = ""
    storage_id: str = ""


def results_root() -> Path:
    """Where all results lie: under the current directory."""
    return Path("results").absolute()


def results_id() -> str:
    """What tells this results/ directory from others that share a storage; made when first asked for."""
    path = results_root() / ".id"
    with writable(results_root()):
        if not path.exists():
            results_root().mkdir(parents=True, exist_ok=True)
            create(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")


def writable(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Raise PrerequisiteError where something cannot be read or written under results/."""
    return explained(f"results {directory}", "put right what lies there, or run from another directory")


def sweep_directory(name: str) -> Path:
    """The directory of one sweep."""
    return results_root() / name


def write_record(name: str, record: SweepRecord) -> None:
    """Remember how a sweep was started."""
    directory = sweep_directory(name)
    with writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        replace(directory / "sweep.json", to_json(record))


def open_storage(sweep: Sweep) -> Storage:
    """The sweep's storage, which is made where there is none.

    Raises PrerequisiteError when the one the sweep ran on before is gone from its place: a file system that is not
    mounted shows an empty directory, in which every cell would run again.
    """
    root = Path(sweep.cluster.storage).resolve()
    record = all_records().get(sweep.name)
    if record is not None and record.storage == str(root) and record.storage_id != storage_id(root):
        raise PrerequisiteError(
            f"storage {root}: the one that sweep {sweep.name} ran on is not there now (is it mounted?); put it back "
            "and run the same command again, or give another name=<sweep>; to begin this one anew: "
            f"rm {sweep_directory(sweep.name) / 'sweep.json'}"
        )
    return Storage(root)


def all_records() -> dict[str, SweepRecord]:
    """Every sweep under results/ by name."""
    found = {}
    for path in sorted(results_root().glob("*/sweep.json")):
        try:
            found[path.parent.name] = from_json(SweepRecord, path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                f"{path}: not what a sweep wrote ({error}); remove it, or run that sweep again"
            ) from error
    return found


def as_started(overrides: list[str]) -> list[str]:
    """A bare `name=X` stands for the command line with which sweep X was started last.

    Raises ConfigError naming the sweeps there are.
    """
    if len(overrides) != 1 or not overrides[0].startswith("name="):
        return overrides
    return _record(overrides[0].removeprefix("name=")).overrides


def continued(overrides: list[str]) -> list[str]:
    """The command line of a sweep that was run before (`name=X`, by default mini), `overrides` in place of its own.

    For verbs that look at a sweep instead of starting one. Raises ConfigError naming the sweeps there are.
    """
    names = [text.removeprefix("name=") for text in overrides if text.startswith("name=")]
    given = {text.partition("=")[0] for text in overrides}
    started = _record(names[-1] if names else DEFAULT_SWEEP).overrides
    return [*(text for text in started if text.partition("=")[0] not in given), *overrides]


def _record(name: str) -> SweepRecord:
    records = all_records()
    if name not in records:
        known = [n for n in records if n not in RESERVED_NAMES]
        there = ", ".join(known) or "none yet; `make sweep` starts one, its results lie where it is run"
        raise ConfigError(f"no sweep `{name}` under {results_root()}; there are: {there}")
    return records[name]
