"""The grid of a shrunk range, searched for the smallest rounding error."""

import torch
from torch import Tensor

from conf.schema import MseClip
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

ROWS_AT_ONCE = 256  # rows are independent; a slice of them stays in the cache through all steps


def fit_grid(weight: Tensor, clip: MseClip, scheme: GridScheme, statistics: Statistics | None = None) -> QuantParams:
    """For each row and group, the factor p in {1, 0.99, ...} on both ends with the smallest sum |error|^norm.

    The first of equals wins, so the widest range. weight: [out, in] float32 or float64. Raises MethodError when a
    scale cannot be stored. Source: the search in GPTQ's code (Frantar et al. 2023), there with steps=80, norm=2.4.
    """
    slices = [_fit_rows(rows, clip, scheme) for rows in torch.split(weight, ROWS_AT_ONCE)]
    scale = torch.cat([params.scale for params in slices])
    zero_point = torch.cat([params.zero_point for params in slices])
    return storable(QuantParams(scale, zero_point, scheme.bits, scheme.group_size), scheme)


def _fit_rows(weight: Tensor, clip: MseClip, scheme: GridScheme) -> QuantParams:
    low, high = group_ranges(weight, scheme)
    best = params_for_ranges(low, high, scheme)
    smallest = _error(weight, best, clip.norm)
    for step in range(1, clip.steps):
        shrink = 1 - step / 100
        params = params_for_ranges(shrink * low, shrink * high, scheme)
        error = _error(weight, params, clip.norm)
        better = error < smallest
        smallest = torch.where(better, error, smallest)
        scale = torch.where(better, params.scale, best.scale)
        zero_point = torch.where(better, params.zero_point, best.zero_point)
        best = QuantParams(scale, zero_point, scheme.bits, scheme.group_size)
    return best


def _error(weight: Tensor, params: QuantParams, norm: float) -> Tensor:
    """Sum |weight - quantized|^norm of each row and group: [out, groups]."""
    error = dequantize(quantize(weight, params), params, weight.dtype).sub_(weight).abs_().pow_(norm)
    return split_groups(error, params.group_size).sum(-1)
