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
    """Decide on the last of a cell's failures; the ladder is that of the stage it happened in.

    OUT_OF_MEMORY climbs the ladder at once. TRANSIENT and WORKER_LOST have their numbers of retries, over both stages,
    and back off, doubling: a hub recovers, and a node that died is known to be gone. Everything else would fail the
    same way again.
    """
    last = failures[-1]
    if last.kind is FailureKind.OUT_OF_MEMORY:
        rungs_tried = sum(f.kind is last.kind and f.stage == last.stage for f in failures)
        return Retry(0.0) if rungs_tried < len(ladder) else GiveUp("no larger placement in this cluster")
    count = sum(f.kind is last.kind for f in failures)
    if count <= MAX_RETRIES.get(last.kind, 0):
        return Retry(FIRST_DELAY_SECONDS * 2 ** (count - 1))
    return GiveUp(f"{last.kind} is not retried" if count == 1 else f"{last.kind} {count} times")
