"""OmniQuant's learned clip: what slot tune left of each end of the range (Shao et al. 2023, section 3.2)."""

import torch
from torch import Tensor

from conf.schema import LearnedClip
from workers.methods.grid import GridScheme, QuantParams, group_ranges, params_for_ranges, storable
from workers.methods.statistics import Statistics


def fit_grid(
    weight: Tensor, clip: LearnedClip, scheme: GridScheme, statistics: Statistics | None = None
) -> QuantParams:
    """The grid from learned.low x lowest to learned.high x highest weight of each row and group.

    weight: [out, in] float32 or float64. Of the statistics what was learned. Raises MethodError when a scale cannot be
    stored. One deviation: in the original, zero need not lie inside the range; here it always does.
    """
    learned = None if statistics is None else statistics.learned
    if learned is None or learned.low is None or learned.high is None:
        raise ValueError("method.clip=learned needs the ends of the ranges that method.tune=block finds")
    low, high = group_ranges(weight, scheme)
    return storable(params_for_ranges(low * learned.low, high * learned.high, scheme), scheme)


def factors(parameter: Tensor, clip: LearnedClip) -> Tensor:
    """What a trained parameter leaves of its end of the range, 0 to 1."""
    return torch.sigmoid(parameter) if clip.form == "sigmoid" else parameter


def bounds(clip: LearnedClip) -> tuple[float, float] | None:
    """Where a trained parameter must stay; null: anywhere."""
    return None if clip.form == "sigmoid" else (0.0, 1.0)
