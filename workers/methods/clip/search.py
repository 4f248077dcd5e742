"""AWQ's clip: the range of each row and group shrunk until the outputs change least (Lin et al. 2023, section 3.3)."""

import torch
from torch import Tensor

from conf.schema import SearchClip
from workers.methods.errors import MethodError
from workers.methods.grid import (
    GridScheme,
    QuantParams,
    dequantize,
    group_ranges,
    params_for_ranges,
    quantize,
    split_groups,
    storable,
)
from workers.methods.statistics import Statistics

WEIGHTS_AT_ONCE = 2**20  # rows are independent; a slice of them stays in the cache through all candidates


def fit_grid(weight: Tensor, clip: SearchClip, scheme: GridScheme, statistics: Statistics | None = None) -> QuantParams:
    """Each row and group takes the shrink with the smallest mean over tokens of (sum_j in group x_j (w_j - q_j))^2.

    Shrinks are 1, 1 - 1/grid, ... above 1 - max_shrink, of the whole range with `symmetric` (both ends cut at the same
    magnitude, as in the original), else of each end by itself. The first of equals wins, so the widest range.
    weight: [out, in]. Of the statistics the inputs. Raises MethodError when a scale cannot be stored.
    """
    if statistics is None or statistics.inputs is None:
        raise ValueError("AWQ's clip needs inputs")
    if not len(statistics.inputs):
        raise MethodError("no calibration token reached this linear; raise calibration.num_sequences")
    inputs = split_groups(statistics.inputs.to(weight.dtype), scheme.group_size)
    groups = inputs.transpose(0, 1)  # [groups, tokens, group]
    # |X e| = |R e| for X = Q R with orthogonal columns of Q: no more rows than a group has columns say the same.
    roots: Tensor = torch.linalg.qr(groups, mode="r").R / len(inputs) ** 0.5
    rows_at_once = max(1, WEIGHTS_AT_ONCE // weight.shape[1])
    slices = [_fit_rows(rows, clip, scheme, roots) for rows in torch.split(weight, rows_at_once)]
    scale = torch.cat([params.scale for params in slices])
    zero_point = torch.cat([params.zero_point for params in slices])
    return storable(QuantParams(scale, zero_point, scheme.bits, scheme.group_size), scheme)


def _fit_rows(weight: Tensor, clip: SearchClip, scheme: GridScheme, roots: Tensor) -> QuantParams:
    low, high = group_ranges(weight, scheme)
    largest = torch.maximum(high, -low)
    best, smallest = params_for_ranges(low, high, scheme), torch.full_like(low, torch.inf)
    for cut_low, cut_high in _shrinks(clip):
        if clip.symmetric:
            ends = torch.maximum(low, -cut_low * largest), torch.minimum(high, cut_high * largest)
        else:
            ends = cut_low * low, cut_high * high
        params = params_for_ranges(*ends, scheme)
        error = _error(weight, params, roots)
        better = error < smallest
        smallest = torch.where(better, error, smallest)
        scale = torch.where(better, params.scale, best.scale)
        best = QuantParams(
            scale, torch.where(better, params.zero_point, best.zero_point), scheme.bits, scheme.group_size
        )
    return best


def _shrinks(clip: SearchClip) -> list[tuple[float, float]]:
    """Factors of the lower and of the upper end, widest first."""
    steps = [1 - i / clip.grid for i in range(int(clip.max_shrink * clip.grid))]
    return [(s, s) for s in steps] if clip.symmetric else [(low, high) for low in steps for high in steps]


def _error(weight: Tensor, params: QuantParams, roots: Tensor) -> Tensor:
    """Mean squared partial output error of each row and group: [out, groups]. roots: [groups, k, group]."""
    difference = dequantize(quantize(weight, params), params, weight.dtype).sub_(weight)
    rows = split_groups(difference, params.group_size).transpose(0, 1)  # [groups, out, group]
    return (rows @ roots.mT).square_().sum(-1).mT
