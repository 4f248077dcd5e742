"""How little a method's loss depends on the model: its mean and its worst case over a set of losses. Pure.

The paper (arXiv 2502.13178) asks for methods that hold over bits, structures and modalities. Here that is two numbers,
each as a mean and as the worst over models: the loss (nats per token, or points of accuracy, against the same model in
16 bits), and the rank among the methods on the same model at the same bits.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.losses import Loss


@dataclass(frozen=True)
class Robustness:
    """One method over several places. mean, worst: of the loss; worst_at: the place of the worst.

    ranks: 1 is best; null where no other method has a value to compare with. num_values: places with a value; missing:
    reason -> models that have none. degraded: the models whose value is not what its label says.
    """

    mean: float
    worst: float
    worst_at: Loss
    mean_rank: float | None
    worst_rank: float | None
    num_values: int
    degraded: tuple[str, ...]


def robustness(losses: Sequence[Loss]) -> Robustness | None:
    """Of one method's losses in one unit; null where no place has a value. An infinite loss makes the mean infinite."""
    known = [(loss.value, loss) for loss in losses if loss.value is not None]
    ranks = [loss.rank for loss in losses if loss.rank is not None]
    if not known:
        return None
    worst, worst_at = max(known, key=lambda pair: pair[0])
    return Robustness(
        mean=math.fsum(value for value, _ in known) / len(known),
        worst=worst,
        worst_at=worst_at,
        mean_rank=math.fsum(ranks) / len(ranks) if ranks else None,
        worst_rank=max(ranks, default=None),
        num_values=len(known),
        degraded=tuple(dict.fromkeys(loss.subject.model for _, loss in known if loss.lost.degraded)),
    )


def missing(losses: Sequence[Loss]) -> dict[str, list[str]]:
    """Reason -> the models without a value for it, each once."""
    found: dict[str, dict[str, None]] = {}
    for loss in losses:
        if loss.missing:
            found.setdefault(loss.missing, {})[loss.subject.model] = None
    return {reason: list(models) for reason, models in found.items()}


def seed_counts(losses: Sequence[Loss]) -> list[int]:
    """How many seeds the values are means of: the distinct counts, ascending."""
    return sorted(Counter(len(loss.lost.values) for loss in losses if loss.lost.values))
