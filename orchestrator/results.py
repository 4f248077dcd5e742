"""results/<sweep>/: what a sweep was asked for, its table and its report."""

from dataclasses import dataclass
from pathlib import Path

from conf.errors import ConfigError
from orchestrator.sweep import RESERVED_NAMES
from workers.api import from_json, to_json
from workers.files import replace

DEFAULT_SWEEP = "mini"


@dataclass(frozen=True)
class SweepRecord:
    """How a sweep was started last. overrides: the command line; quantize_keys: checkpoints it needs."""

    overrides: list[str]
    quantize_keys: list[str]


def results_root() -> Path:
    """Where all results lie: under the current directory."""
    return Path("results").absolute()


def sweep_directory(name: str) -> Path:
    """The directory of one sweep."""
    return results_root() / name


def write_record(name: str, record: SweepRecord) -> None:
    """Remember how a sweep was started."""
    directory = sweep_directory(name)
    directory.mkdir(parents=True, exist_ok=True)
    replace(directory / "sweep.json", to_json(record))


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
        raise ConfigError(f"no sweep `{name}` under {results_root()}; there are: {', '.join(known) or 'none yet'}")
    return records[name]
