"""Whether a cell can run at all: not in principle (a closed list), not yet, or a combination that makes no sense."""

import functools
from pathlib import Path

import yaml

from conf.schema import CellConf, FloatScheme
from orchestrator.cell import CellStatus
from workers.arch import ARCHITECTURES
from workers.methods.refusals import refusals
from workers.methods.registry import is_baseline, missing_schemes, missing_stages

APPLICABILITY = Path(__file__).resolve().parents[1] / "conf" / "applicability.yaml"


def support(config: CellConf, architecture: str) -> tuple[CellStatus | None, str]:
    """(null, "") for a cell that can run, else NOT_APPLICABLE or NOT_IMPLEMENTED and the reason."""
    for entry in _not_applicable():
        slots = {k: v for k, v in entry.items() if k not in ("architecture", "lane", "reason", "section")}
        if (
            entry["architecture"] == architecture
            and entry.get("lane", config.lane.name) == config.lane.name
            and all(type(getattr(config.method, slot)).__name__ == name for slot, name in slots.items())
        ):
            return CellStatus.NOT_APPLICABLE, f"{entry['reason']} (methods, section {entry['section']})"
    missing = missing_stages(config.method) + missing_schemes(config.scheme)
    if architecture not in ARCHITECTURES:
        missing.append(f"architecture: `{architecture}` has no table (there are {', '.join(ARCHITECTURES)})")
    if missing:
        return CellStatus.NOT_IMPLEMENTED, "; ".join(missing)
    return None, ""


def illegal(config: CellConf) -> list[str]:
    """Why a combination of implemented stages and scheme makes no sense; empty when it does."""
    if missing_stages(config.method) or missing_schemes(config.scheme):
        return []
    reasons = list(refusals(config.method, config.scheme))
    if is_baseline(config.method) and not isinstance(config.scheme, FloatScheme):
        reasons.append("scheme: nothing is rounded, so there is no grid; leave the scheme to the method")
    return reasons


@functools.cache
def _not_applicable() -> tuple[dict[str, str], ...]:
    return tuple(yaml.safe_load(APPLICABILITY.read_text(encoding="utf-8")))
