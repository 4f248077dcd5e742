"""Whether a node may take part: it runs what the lock lists, and has storage and inputs under the driver's paths.

`survey` runs on the node and says what is there; `refusals` compares that with the terms, on the driver. The standard
library alone: the comparison also serves locks/check.py, while an environment is being made.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workers.files import unfit_reason
from workers.secrets import secret_problems

LANES = ("cpu", "cuda")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MAX_SHOWN = 4  # what differs, per node


@dataclass(frozen=True)
class Terms:
    """What a node must have.

    lanes: name of a lane -> its pins, one lane of which the node must have; empty where the node is the driver's own
    environment. inputs: files and directories that the cells read, absolute. secrets: variable -> file, as configured.
    """

    storage: Path
    inputs: tuple[str, ...]
    lanes: dict[str, dict[str, str]]
    secrets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """What a node found. installed: null where a package is not there. storage_error: null when it could write."""

    python: str
    installed: dict[str, str | None]
    missing_inputs: tuple[str, ...]
    storage_error: str | None
    secret_problems: tuple[str, ...] = ()


def pins(text: str) -> dict[str, str]:
    """The `name==version` lines of a list in locks/."""
    return dict(re.findall(r"^([^#\s]+)==(\S+)$", text, re.MULTILINE))


def read_lanes(locks: Path) -> dict[str, dict[str, str]]:
    """What each lane installs: its own list and the common one."""
    common = pins((locks / "common.txt").read_text(encoding="utf-8"))
    return {lane: common | pins((locks / f"{lane}.txt").read_text(encoding="utf-8")) for lane in LANES}


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Versions in this process's environment; null for what is not there."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def mismatches(pinned: dict[str, str], found: dict[str, str | None]) -> list[str]:
    """One line for each package that is not installed as pinned."""
    return [
        f"{name}: {wanted} is pinned, {found.get(name) or 'none'} is installed"
        for name, wanted in pinned.items()
        if found.get(name) != wanted
    ]


def survey(terms: Terms, node_id: str) -> Survey:
    """On the node: write where the driver will look, and say what is here."""
    return Survey(
        python=PYTHON,
        installed=installed({name for pinned in terms.lanes.values() for name in pinned}),
        missing_inputs=tuple(path for path in terms.inputs if not Path(path).exists()),
        storage_error=_write_probe(terms, node_id),
        secret_problems=tuple(secret_problems(terms.secrets)),
    )


def _write_probe(terms: Terms, node_id: str) -> str | None:
    path = _probe_path(terms, node_id)
    try:
        path.write_text(node_id, encoding="utf-8")
        return unfit_reason(path.parent)
    except OSError as error:
        return str(error)


def refusals(terms: Terms, found: Survey, node_id: str) -> list[str]:
    """On the driver: why a node is refused, each with what to do next; empty when it is admitted."""
    missing = [*_input_refusal(found), *found.secret_problems]
    return [*_storage_refusal(terms, found, node_id), *missing, *_lock_refusal(terms, found)]


def _storage_refusal(terms: Terms, found: Survey, node_id: str) -> list[str]:
    error = found.storage_error
    if error is None:
        probe = _probe_path(terms, node_id)
        try:
            if probe.read_text(encoding="utf-8") == node_id:
                probe.unlink()
                return []
            error = f"{probe} is not what the node wrote"
        except OSError as unreadable:
            error = f"what the node wrote is not here: {unreadable}"
    return [
        f"it cannot use the storage {terms.storage} ({error}); give a directory that every node sees under one path: "
        "cluster.storage=<directory>"
    ]


def _input_refusal(found: Survey) -> list[str]:
    if not found.missing_inputs:
        return []
    return [
        f"it has no {_first(found.missing_inputs)}; put models and texts where every node sees them under one path, or "
        "name a model by its hub id"
    ]


def _lock_refusal(terms: Terms, found: Survey) -> list[str]:
    """The lane that is nearest to being there is the one that is compared."""
    if found.python != PYTHON:
        return [f"its Python is {found.python}, the driver's {PYTHON}; start Ray from an environment that has {PYTHON}"]
    differing = {lane: mismatches(pinned, found.installed) for lane, pinned in terms.lanes.items()}
    if not differing or not all(differing.values()):
        return []
    lane = min(differing, key=lambda name: len(differing[name]))
    return [
        f"its environment is not the {lane} lane of this lock: {_first(differing[lane])}; there, in this version of "
        "the project: make setup, then start Ray from that .venv"
    ]


def _first(lines: list[str] | tuple[str, ...]) -> str:
    more = f", and {len(lines) - MAX_SHOWN} more" if len(lines) > MAX_SHOWN else ""
    return ", ".join(lines[:MAX_SHOWN]) + more


def _probe_path(terms: Terms, node_id: str) -> Path:
    return terms.storage / "leases" / f"probe-{node_id}"
