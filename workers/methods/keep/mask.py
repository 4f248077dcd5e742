"""PB-LLM: the most salient entries get an 8-bit grid, all others one bit (Shang et al. 2023)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import MaskKeep, MinmaxClip, SchemeConf, UniformScheme
from workers.methods.accounting import salient_fraction
from workers.methods.clip import minmax
from workers.methods.factor import factor_damped
from workers.methods.grid import SMALLEST_SCALE, FitGrid, LoopGrid, QuantParams
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


@dataclass(frozen=True)
class MaskedParams:
    """mask: [out, in], true where `high` holds, a grid for each row. Elsewhere the levels are the row's mean -+ spread.

    mean, spread: [out, 1] float32, exactly what float16 holds.
    """

    mask: Tensor
    mean: Tensor
    spread: Tensor
    high: QuantParams

    def nearest(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in] uint8."""
        return torch.where(self.mask, self.high.nearest(weight), (weight > self.mean).byte())

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] uint8 -> [out, in] of `dtype`."""
        low = self.mean.to(dtype) + self.spread.to(dtype) * (2 * codes.to(dtype) - 1)
        return torch.where(self.mask, self.high.values(codes, dtype), low)

    def for_loop(self, weight: Tensor) -> LoopGrid:
        """Every entry a group of its own; those of one bit are moved so that their lower level is zero."""
        moved = torch.where(self.mask, weight, weight - (self.mean - self.spread).to(weight.dtype))
        scale = torch.where(self.mask, self.high.scale, (2 * self.spread).clamp(min=SMALLEST_SCALE))
        zero_point = torch.where(self.mask, self.high.zero_point, 0)
        largest = torch.where(self.mask, self.high.max_code, 1)
        return LoopGrid(moved, scale, zero_point, torch.arange(weight.shape[1], device=weight.device), largest)


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
        return MaskedParams(mask, *_levels(columns, ~mask), high)

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


def _levels(weight: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean distance from it of the entries of `where`, for each row: [out, 1]."""
    count = where.sum(1, keepdim=True).clamp(min=1)
    mean = ((weight * where).sum(1, keepdim=True) / count).half().to(weight.dtype)
    spread = ((weight - mean).abs() * where).sum(1, keepdim=True) / count
    return mean.float(), spread.half().float()
