"""Which checkpoints sweeps need, written into the storage they share, so that `gc` knows of those it cannot see.

needs/<sweep>-<id of a results directory>.json. For the sweeps under its own results/ `gc` goes by their records there:
a sweep whose directory is removed needs nothing any more. What another results/ directory needs it cannot know.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from orchestrator import results
from orchestrator.io_errors import explained
from orchestrator.storage import Storage
from workers.api import from_json, to_json
from workers.errors import PrerequisiteError
from workers.files import replace


@dataclass(frozen=True)
class Needs:
    """What one sweep needs. results: where its tables lie, as `host:directory`; results_id tells that from others."""

    sweep: str
    results: str
    results_id: str
    quantize_keys: list[str]


def write_needs(storage: Storage, sweep: str, quantize_keys: list[str]) -> None:
    """Say in the storage what a sweep under results/ needs."""
    owner = results.results_id()
    text = to_json(Needs(sweep, f"{socket.gethostname()}:{results.results_root()}", owner, quantize_keys))
    with explained(f"storage {storage.root}", "give another directory: cluster.storage=<directory>"):
        _directory(storage).mkdir(exist_ok=True)
        replace(_directory(storage) / f"{sweep}-{owner}.json", text)


def needs_of_others(storage: Storage) -> dict[Path, Needs]:
    """By file, what sweeps of other results/ directories need. Raises PrerequisiteError where one cannot be read."""
    found = {}
    for path in sorted(_directory(storage).glob("[!.]*.json")):
        try:
            needs = from_json(Needs, path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PrerequisiteError(
                f"{path}: not what a sweep wrote ({error}); run that sweep again, or remove the file"
            ) from error
        if needs.results_id != results.results_id():
            found[path] = needs
    return found


def drop_needs(storage: Storage) -> None:
    """Remove what sweeps that are no longer recorded under results/ have said."""
    known = {f"{name}-{results.results_id()}.json" for name in results.all_records()}
    for path in _directory(storage).glob(f"*-{results.results_id()}.json"):
        if path.name not in known:
            path.unlink(missing_ok=True)


def _directory(storage: Storage) -> Path:
    return storage.root / "needs"
