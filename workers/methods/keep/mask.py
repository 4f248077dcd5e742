"""PB-LLM: the most salient entries get an 8-bit grid, all others one bit (Shang et al. 2023)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import MaskKeep, MinmaxClip, SchemeConf, UniformScheme
from workers.methods.accounting import salient_fraction
from workers.methods.clip import minmax
from workers.methods.factor import factor_damped
from workers.methods.grid import SMALLEST_SCALE, FitGrid, LoopGrid, QuantParams, on_integers
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


@dataclass(frozen=True)
class MaskedParams:
    """mask: [out, in], true where `high` holds and false where `low` does. Both have one grid for each row."""

    mask: Tensor
    low: QuantParams
    high: QuantParams

    def nearest(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in] uint8."""
        return torch.where(self.mask, self.high.nearest(weight), self.low.nearest(weight))

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] uint8 -> [out, in] of `dtype`."""
        return torch.where(self.mask, self.high.values(codes, dtype), self.low.values(codes, dtype))

    def for_loop(self, weight: Tensor) -> LoopGrid:
        """Every entry a group of its own."""
        scale = torch.where(self.mask, self.high.scale, self.low.scale)
        zero_point = torch.where(self.mask, self.high.zero_point, self.low.zero_point)
        moved, integral = on_integers(weight, QuantParams(scale, zero_point, self.high.bits, group_size=1))
        largest = torch.where(self.mask, self.high.max_code, self.low.max_code)
        return LoopGrid(moved, scale, integral.zero_point, torch.arange(weight.shape[1]), largest)


def round_rest(
    weight: Tensor,
    statistics: Statistics,
    keep: MaskKeep,
    scheme: SchemeConf,
    fit: FitGrid,
    rounding: Callable[[Tensor, Statistics, FitGrid], Rounded],
) -> Rounded:
    """Round with one bit where the saliency is low and `keep.bits` where it is high; the mask is fixed beforehand.

    Saliency of an entry: w^2 D_jj with D of H = A D A^T (that is w^2 over GPTQ's squared diagonal), or |w|. The most
    salient of the whole matrix are kept. The one-bit levels of a row are mean +- mean |w - mean|, of the entries that
    get them alone (the original counts the others as zeros). weight: [out, in]. `fit` is not used: the salient range
    is the whole one.
    """
    mask = _mask(weight, statistics, keep, salient_fraction(keep, scheme))

    def fit_both(columns: Tensor) -> MaskedParams:
        high = minmax.fit_grid(columns.masked_fill(~mask, 0), MinmaxClip(), UniformScheme(bits=keep.bits))
        return MaskedParams(mask, _binary(columns, ~mask), high)

    return rounding(weight, statistics, fit_both)


def _mask(weight: Tensor, statistics: Statistics, keep: MaskKeep, fraction: float) -> Tensor:
    saliency = weight.abs()
    if keep.saliency == "hessian":
        if statistics.hessian is None:
            raise ValueError("PB-LLM's saliency needs a Hessian")
        saliency = saliency.square() * factor_damped(statistics.hessian, keep.damping).pivots
    count = round(fraction * weight.numel())
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[saliency.flatten().topk(count).indices] = True
    return mask.reshape(weight.shape)


def _binary(weight: Tensor, where: Tensor) -> QuantParams:
    """One bit for each entry of `where`, one grid for each row; stored as float16."""
    count = where.sum(1, keepdim=True).clamp(min=1)
    mean = (weight * where).sum(1, keepdim=True) / count
    spread = ((weight - mean).abs() * where).sum(1, keepdim=True) / count
    scale = (2 * spread).clamp(min=SMALLEST_SCALE).half().float()
    zero_point = (0.5 - mean / scale).half().float()
    return QuantParams(scale, zero_point, bits=1, group_size=None)
