"""What follows a failed attempt: pure, (failures so far, placements to climb) -> Retry | GiveUp."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.placement import Placement
from workers.api import Failure, FailureKind

Ladder = tuple[Placement, ...]  # the placement to begin with, then larger ones

MAX_RETRIES: dict[FailureKind, int] = {FailureKind.TRANSIENT: 3, FailureKind.WORKER_LOST: 2}
FIRST_DELAY_SECONDS = 10.0


@dataclass(frozen=True)
class Retry:
    """Try again, not before `delay_seconds` from now."""

    delay_seconds: float


@dataclass(frozen=True)
class GiveUp:
    """The last failure stands."""

    reason: str


def decide(failures: Sequence[Failure], ladder: Ladder) -> Retry | GiveUp:
    """Decide on the last failure. OUT_OF_MEMORY climbs the ladder; TRANSIENT backs off, doubling; a lost worker is
    tried at most twice more; everything else would fail the same way again.
    """
    last = failures[-1]
    count = sum(f.kind is last.kind and f.stage == last.stage for f in failures)
    if last.kind is FailureKind.OUT_OF_MEMORY:
        if count < len(ladder):
            return Retry(0.0)
        return GiveUp("no larger placement in this cluster")
    if count <= MAX_RETRIES.get(last.kind, 0):
        return Retry(FIRST_DELAY_SECONDS * 2 ** (count - 1) if last.kind is FailureKind.TRANSIENT else 0.0)
    return GiveUp(f"{last.kind} is not retried" if count == 1 else f"{last.kind} {count} times")
