"""Uniform grids: from a range to scale and zero point, from weights to codes and back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from conf.schema import RealZeroScheme, UniformScheme
from workers.methods.errors import MethodError

# No grid is finer than this: float16's subnormals hold it within 3 %, and weights this small hardly contribute. Rows of
# a trained model can have decayed to nothing.
SMALLEST_SCALE = 2.0**-20

SCALE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class Params(Protocol):
    """What gives the codes of one linear their values."""

    def nearest(self, weight: Tensor) -> Tensor:
        """The codes of [out, in] with the smallest error, each by itself."""

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that codes stand for: [out, in] of `dtype`."""


@dataclass(frozen=True)
class LoopGrid:
    """What a loop over columns needs to know of a grid.

    weight: [out, in], moved so that zero points are integers. scale, zero_point: [out, groups]. group_of_column: [in].
    max_code: the largest code, or [out, groups] of them.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    group_of_column: Tensor
    max_code: int | Tensor


@runtime_checkable
class ColumnParams(Params, Protocol):
    """Params whose codes can be chosen column after column."""

    def for_loop(self, weight: Tensor) -> LoopGrid:
        """The grid under the weights [out, in] of the same rounding problem."""


@runtime_checkable
class VectorParams(Params, Protocol):
    """Params with one code, or several, for so many neighbouring columns together, wherever these are."""

    @property
    def vector_size(self) -> int:
        """How many columns."""


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

    def nearest(self, weight: Tensor) -> Tensor:
        """Halves go to even: [out, in] -> [out, in] uint8."""
        return quantize(weight, self)

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in] uint8 -> [out, in] of `dtype`."""
        return dequantize(codes, self, dtype)

    def for_loop(self, weight: Tensor) -> LoopGrid:
        """Weights [out, in] and this grid, moved together by the fraction of a step."""
        moved, integral = on_integers(weight, self)
        columns = torch.arange(weight.shape[1], device=weight.device)
        groups = columns // (weight.shape[1] // self.scale.shape[1])
        return LoopGrid(moved, integral.scale, integral.zero_point, groups, self.max_code)


GridScheme = UniformScheme | RealZeroScheme
"""Schemes whose codes are integers on evenly spaced levels."""

FitGrid = Callable[[Tensor], Params]
"""Weights [out, columns], float32 or float64 -> the grids of these columns; columns is a multiple of the group size."""


def is_symmetric(scheme: GridScheme) -> bool:
    """Whether the zero point is fixed in the middle."""
    return isinstance(scheme, UniformScheme) and scheme.symmetric


def scale_dtype(scheme: GridScheme) -> torch.dtype:
    """What scales are stored in."""
    return SCALE_DTYPES[scheme.scale_dtype] if isinstance(scheme, UniformScheme) else torch.float16


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


def group_ranges(weight: Tensor, scheme: GridScheme) -> tuple[Tensor, Tensor]:
    """Lowest and highest value each group must represent, both [out, groups]; zero always lies between them.

    Symmetric: mirrored around zero. A group of zeros gets (-1, 1), so that its scale is not zero.
    """
    groups = split_groups(weight, scheme.group_size)
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    if is_symmetric(scheme):
        high = torch.maximum(high, -low)
        low = -high
    empty = low == high
    return low.masked_fill_(empty, -1), high.masked_fill_(empty, 1)


def params_for_ranges(low: Tensor, high: Tensor, scheme: GridScheme) -> QuantParams:
    """The grids whose codes 0..2^bits - 1 span low..high (both [out, groups], low <= 0 <= high).

    The zero point belongs to the stored, rounded scale, which is never below SMALLEST_SCALE. A symmetric grid has it at
    2^(bits - 1) and an even number of codes: it reaches half a step beyond low and ends half a step short of high.
    A real-valued zero point is what float16 holds.
    """
    steps = 2**scheme.bits - 1
    scale = ((high - low) / steps).clamp_(min=SMALLEST_SCALE).to(scale_dtype(scheme)).float()
    if is_symmetric(scheme):
        zero_point = torch.full_like(scale, 2 ** (scheme.bits - 1))
    elif isinstance(scheme, RealZeroScheme):
        zero_point = (-low / scale).half().float()
    else:
        zero_point = torch.round(-low / scale).float()
    return QuantParams(scale, zero_point, scheme.bits, scheme.group_size)


def storable(params: QuantParams, scheme: GridScheme) -> QuantParams:
    """The same grids, known to survive storage.

    Raises MethodError when a scale overflows its dtype, naming row, group and what to change.
    """
    info = torch.finfo(scale_dtype(scheme))
    bad = ~(params.scale <= info.max)
    if bad.any():
        row, group = bad.nonzero()[0].tolist()
        can_widen = info.bits == 16 and isinstance(scheme, UniformScheme)
        advice = "set scheme.scale_dtype=float32" if can_widen else "check the checkpoint's weights"
        raise MethodError(
            f"scale {float(params.scale[row, group]):.3g} of output row {row}, group {group} (and {int(bad.sum()) - 1} "
            f"more) is above {info.dtype!s}'s largest number {info.max:.3g}; {advice}"
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


def quantize(weight: Tensor, params: QuantParams, offset: Tensor | None = None) -> Tensor:
    """Nearest codes, halves to even: [out, in] float32 or float64 -> [out, in] uint8.

    offset: [out, in], in steps, added to the weights first.
    """
    moved, integral = on_integers(weight, params)
    steps = moved.reshape(*params.scale.shape, -1) / _column(params.scale, weight)
    if offset is not None:
        steps.add_(offset.reshape(steps.shape))
    codes = steps.round_().add_(_column(integral.zero_point, weight))
    return codes.clamp_(0, params.max_code).to(torch.uint8).reshape(weight.shape)


def dequantize(codes: Tensor, params: QuantParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights codes stand for: [out, in] uint8 -> [out, in] of `dtype`."""
    groups = codes.reshape(*params.scale.shape, -1).to(dtype)
    return groups.sub_(_column(params.zero_point, groups)).mul_(_column(params.scale, groups)).reshape(codes.shape)


def _column(per_group: Tensor, like: Tensor) -> Tensor:
    return per_group.to(like.dtype).unsqueeze(-1)
