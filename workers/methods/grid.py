"""Uniform grids: from a range to scale and zero point, from weights to codes and back."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conf.schema import UniformScheme
from workers.methods.errors import MethodError

# No grid is finer than this: float16's subnormals hold it within 3 %, and weights this small hardly contribute. Rows of
# a trained model can have decayed to nothing.
SMALLEST_SCALE = 2.0**-20

SCALE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class QuantParams:
    """The grids of one linear, or of some of its columns: one for each output row and group of input columns.

    A weight is scale x (code - zero_point), code in 0..2^bits - 1.
    scale: [out, groups] float32, exactly what the stored scale dtype holds. zero_point: [out, groups] float32; an
    integer where zero is on the grid. group_size null: one group per output row.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    group_size: int | None

    @property
    def max_code(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)


FitGrid = Callable[[Tensor], QuantParams]
"""Weights [out, columns], float32 or float64 -> the grids of these columns; columns is a multiple of the group size."""


def split_groups(weight: Tensor, group_size: int | None) -> Tensor:
    """[out, in] -> [out, groups, group]. Raises ValueError when the group size does not divide in."""
    out_features, in_features = weight.shape
    size = in_features if group_size is None else group_size
    if in_features % size:
        raise ValueError(
            f"scheme.group_size={size} does not divide {in_features} input columns; "
            "choose a divisor, or null for one group per output row"
        )
    return weight.reshape(out_features, in_features // size, size)


def group_ranges(weight: Tensor, scheme: UniformScheme) -> tuple[Tensor, Tensor]:
    """Lowest and highest value each group must represent, both [out, groups]; zero always lies between them.

    Symmetric: mirrored around zero. A group of zeros gets (-1, 1), so that its scale is not zero.
    """
    groups = split_groups(weight, scheme.group_size)
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    empty = low == high
    return low.masked_fill_(empty, -1), high.masked_fill_(empty, 1)


def params_for_ranges(low: Tensor, high: Tensor, scheme: UniformScheme) -> QuantParams:
    """The grids whose codes 0..2^bits - 1 span low..high (both [out, groups], low <= 0 <= high).

    The zero point belongs to the stored, rounded scale, which is never below SMALLEST_SCALE. A symmetric grid has it at
    2^(bits - 1) and an even number of codes: it reaches half a step beyond low and ends half a step short of high.
    """
    steps = 2**scheme.bits - 1
    scale = ((high - low) / steps).clamp_(min=SMALLEST_SCALE).to(SCALE_DTYPES[scheme.scale_dtype]).float()
    if scheme.symmetric:
        zero_point = torch.full_like(scale, 2 ** (scheme.bits - 1))
    else:
        zero_point = torch.round(-low / scale).float()
    return QuantParams(scale, zero_point, scheme.bits, scheme.group_size)


def storable(params: QuantParams, scheme: UniformScheme) -> QuantParams:
    """The same grids, known to survive storage.

    Raises MethodError when a scale overflows its dtype, naming row, group and what to change.
    """
    info = torch.finfo(SCALE_DTYPES[scheme.scale_dtype])
    bad = ~(params.scale <= info.max)
    if bad.any():
        row, group = bad.nonzero()[0].tolist()
        advice = "set scheme.scale_dtype=float32" if info.bits == 16 else "check the checkpoint's weights"
        raise MethodError(
            f"scale {float(params.scale[row, group]):.3g} of output row {row}, group {group} (and {int(bad.sum()) - 1} "
            f"more) is above {scheme.scale_dtype}'s largest number {info.max:.3g}; {advice}"
        )
    return params


def on_integers(weight: Tensor, params: QuantParams) -> tuple[Tensor, QuantParams]:
    """The same rounding problem with integer zero points: weights and grid moved together by the fraction of a step.

    weight: [out, in]. Codes and errors stay what they are, so column loops need to know integer zero points only.
    """
    whole = params.zero_point.floor()
    fraction = params.zero_point - whole
    if not fraction.any():
        return weight, params
    groups = weight.reshape(*params.scale.shape, -1)
    moved = groups + _column(params.scale * fraction, weight)
    return moved.reshape(weight.shape), replace(params, zero_point=whole)


def quantize(weight: Tensor, params: QuantParams) -> Tensor:
    """Nearest codes, halves to even: [out, in] float32 or float64 -> [out, in] uint8."""
    moved, integral = on_integers(weight, params)
    groups = moved.reshape(*params.scale.shape, -1)
    codes = (groups / _column(params.scale, weight)).round_().add_(_column(integral.zero_point, weight))
    return codes.clamp_(0, params.max_code).to(torch.uint8).reshape(weight.shape)


def dequantize(codes: Tensor, params: QuantParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights codes stand for: [out, in] uint8 -> [out, in] of `dtype`."""
    groups = codes.reshape(*params.scale.shape, -1).to(dtype)
    return groups.sub_(_column(params.zero_point, groups)).mul_(_column(params.scale, groups)).reshape(codes.shape)


def _column(per_group: Tensor, like: Tensor) -> Tensor:
    return per_group.to(like.dtype).unsqueeze(-1)
