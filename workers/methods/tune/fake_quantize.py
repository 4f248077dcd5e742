"""Rounding that lets gradients through: the numbers are those of `workers.methods.grid`, the slopes are chosen.

Rounding, and storing a scale in its dtype, count as the identity where a gradient passes (straight-through); a clamped
code stands still. Each function is one node of autograd, so that a step costs few passes over the weights. Masks are
floats: on a processor a comparison into bools, and a product with them, take five times as long.
"""

from typing import Any

import torch
from torch import Tensor

from conf.schema import UniformScheme
from workers.methods.grid import group_ranges, is_symmetric, params_for_ranges, split_groups


def range_ends(weight: Tensor, scheme: UniformScheme) -> tuple[Tensor, Tensor]:
    """The lowest and highest values of `group_ranges`, [out, groups], differentiable in the weight [out, in].

    Of several weights at an end, each moves it.
    """
    low, high = _Ends.apply(weight, scheme)  # type: ignore[no-untyped-call]
    return low, high


def grid_for_ranges(low: Tensor, high: Tensor, scheme: UniformScheme) -> tuple[Tensor, Tensor]:
    """Scale and zero point of `params_for_ranges`, differentiable in both ends; all [out, groups] float32."""
    scale, zero_point = _Grid.apply(low, high, scheme)  # type: ignore[no-untyped-call]
    return scale, zero_point


def fake_quantize(weight: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor | None, max_code: int) -> Tensor:
    """The values of the codes of `quantize`: s (clamp(round(w / s + offset) + z, 0, max_code) - z), [out, in] float32.

    Differentiable in the weight [out, in], the scale and the integer zero point, both [out, groups], and the offset
    [out, in], in steps.
    """
    values: Tensor = _FakeQuantize.apply(weight, scale, zero_point, offset, max_code)  # type: ignore[no-untyped-call]
    return values


class _Ends(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scheme: UniformScheme) -> tuple[Tensor, Tensor]:
        low, high = group_ranges(weight, scheme)
        ctx.save_for_backward(weight, low, high)
        ctx.scheme = scheme
        return low, high

    @staticmethod
    def backward(ctx: Any, low_grad: Tensor, high_grad: Tensor) -> tuple[Tensor, None]:
        weight, low, high = ctx.saved_tensors
        groups = split_groups(weight, ctx.scheme.group_size)
        if is_symmetric(ctx.scheme):
            at_end = groups.abs().eq_(high.unsqueeze(-1)).mul_(groups.sign())
            grad = at_end.mul_((high_grad - low_grad).unsqueeze(-1))
        else:
            at_low, at_high = groups.clone().eq_(low.unsqueeze(-1)), groups.clone().eq_(high.unsqueeze(-1))
            grad = at_low.mul_(low_grad.unsqueeze(-1)).addcmul_(at_high, high_grad.unsqueeze(-1))
        return grad.reshape(weight.shape), None


class _Grid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor, scheme: UniformScheme) -> tuple[Tensor, Tensor]:
        params = params_for_ranges(low, high, scheme)
        ctx.save_for_backward(low, params.scale)
        ctx.steps, ctx.symmetric = params.max_code, is_symmetric(scheme)
        return params.scale, params.zero_point

    @staticmethod
    def backward(ctx: Any, scale_grad: Tensor, zero_grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """scale = (high - low) / steps; zero point = -low / scale, or a constant of symmetric grids."""
        low, scale = ctx.saved_tensors
        low_grad = torch.zeros_like(low) if ctx.symmetric else -zero_grad / scale
        if not ctx.symmetric:
            scale_grad = scale_grad + zero_grad * low / scale.square()
        return low_grad - scale_grad / ctx.steps, scale_grad / ctx.steps, None


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor, offset: Tensor | None, max_code: int
    ) -> Tensor:
        """Saved: how each value moves with its scale, and a mask of the clamped."""
        step, zero = scale.unsqueeze(-1), zero_point.unsqueeze(-1)
        position = weight.reshape(*scale.shape, -1) / step
        moved = position if offset is None else position + offset.reshape(position.shape)
        codes = torch.round(moved).add_(zero)
        clamped = codes.clamp(0, max_code)
        outside = codes.ne_(clamped)
        centred = clamped.sub_(zero)
        slope = torch.addcmul(centred, position, outside).sub_(position)  # centred - position where nothing is clamped
        ctx.save_for_backward(slope, outside, scale)
        return (centred * step).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, outside, scale = ctx.saved_tensors
        weight_needed, scale_needed, zero_needed, offset_needed, _ = ctx.needs_input_grad
        groups = grad.reshape(outside.shape)
        scale_grad = (groups * slope).sum(-1) if scale_needed else None
        zero_grad = (groups * outside).sum(-1).mul_(-scale) if zero_needed else None
        free = groups - groups * outside if weight_needed or offset_needed else groups
        weight_grad = free.reshape(grad.shape) if weight_needed else None
        offset_grad = (free * scale.unsqueeze(-1)).reshape(grad.shape) if offset_needed else None
        return weight_grad, scale_grad, zero_grad, offset_grad, None
