"""HQQ: a real-valued zero point, fitted so that the error is sparse; no data (Badri and Shaji 2023)."""

from dataclasses import replace

import torch
from torch import Tensor

from conf.schema import HqqRound, SchemeConf
from workers.methods.grid import FitGrid, QuantParams, dequantize, quantize, split_groups
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def round_weight(weight: Tensor, statistics: Statistics, conf: HqqRound, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Half-quadratic splitting of min |W - Q|_p^p over the zero points; scales stay as fitted.

    Each iteration shrinks the error, E = shrink_p(W - Q), and moves the zero point to the mean over the group of
    codes - (W - E) / scale. The iterate with the smallest mean |W - Q| is kept, the fitted grid among them, so it is
    never worse than rounding to nearest on that grid; iterations end when that mean stops falling.
    weight: [out, in]. Zero points are what float16 holds. Statistics are not used.
    """
    params = fit(weight)
    assert isinstance(params, QuantParams)
    codes = quantize(weight, params)
    best, smallest = (codes, params), _error(weight, codes, params)
    for _ in range(conf.iterations):
        left = weight - dequantize(codes, params, weight.dtype)
        target = split_groups(weight - _shrink(left, conf), params.group_size) / params.scale.unsqueeze(-1)
        centre = (split_groups(codes.to(weight.dtype), params.group_size) - target).mean(-1)
        params = replace(params, zero_point=centre.half().float())
        codes = quantize(weight, params)
        error = _error(weight, codes, params)
        if error >= smallest:
            break
        best, smallest = (codes, params), error
    return Rounded(*best, stage="hqq")


def _shrink(error: Tensor, conf: HqqRound) -> Tensor:
    """The generalised soft threshold: sign(x) max(|x| - |x|^(p-1) / beta, 0); zero stays zero."""
    size = error.abs()
    smaller = size - size.clamp(min=torch.finfo(size.dtype).tiny).pow(conf.norm - 1) / conf.beta
    return error.sign() * smaller.clamp(min=0)


def _error(weight: Tensor, codes: Tensor, params: QuantParams) -> float:
    return float((weight - dequantize(codes, params, weight.dtype)).abs().mean(dtype=torch.float64))
