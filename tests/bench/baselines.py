"""The algorithms as their papers write them, in plain torch: what ours are compared with, in time and in loss."""

import torch
from torch import Tensor

DAMPING = 0.01


def textbook_gptq(weight: Tensor, hessian: Tensor, bits: int, block_size: int = 128) -> Tensor:
    """Frantar et al. 2023, algorithm 1, with act_order: Cholesky, inverse, Cholesky, then right-looking updates.

    One asymmetric grid for each row, zero inside its range. Returns the quantized weight [out, in].
    """
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    max_code = 2**bits - 1
    scale = (high - low) / max_code
    zero_point = torch.round(-low / scale)
    order = torch.argsort(hessian.diagonal(), descending=True)
    weight, damped = weight[:, order], hessian[order][:, order]
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    rounded = torch.empty_like(weight)
    for start in range(0, weight.shape[1], block_size):
        stop = min(start + block_size, weight.shape[1])
        block, own = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            code = torch.clamp(torch.round(block[:, i] / scale) + zero_point, 0, max_code)
            rounded[:, start + i] = scale * (code - zero_point)
            errors[:, i] = (block[:, i] - rounded[:, start + i]) / own[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * own[i, i + 1 :]
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return rounded[:, torch.argsort(order)]


def textbook_quip(weight: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """Chee et al. 2023: rescale, dense orthogonal matrices, LDLQ a column at a time, one greedy pass, and back.

    Codes are clamped, targets are not. Returns the quantized weight [out, in].
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (_orthogonal(n, generator) for n in weight.shape)
    rescale: Tensor = (hessian.diagonal() / weight.square().sum(0)).pow(0.25)
    turned = left @ (weight * rescale) @ right.mT
    metric = right @ (hessian / rescale / rescale[:, None]) @ right.mT
    for _ in range(2):  # once for the trace, once for the rounding
        metric.diagonal().add_(DAMPING * metric.diagonal().mean())
    max_code = 2**bits - 1
    half = 2.4 * turned.square().mean().sqrt()
    target = (turned / half + 1) / 2 * max_code
    lower = torch.linalg.cholesky(metric)
    lower = lower / lower.diagonal()
    codes = target.clone()
    for i in reversed(range(weight.shape[1])):
        fed_back = (target[:, i + 1 :] - codes[:, i + 1 :]) @ lower[i + 1 :, i]
        codes[:, i] = (target[:, i] + fed_back).round().clamp(0, max_code)
    error = codes - target
    for i in reversed(range(weight.shape[1])):
        better = (codes[:, i] - error @ metric[:, i] / metric[i, i]).round().clamp(0, max_code)
        error[:, i] += better - codes[:, i]
        codes[:, i] = better
    quantized: Tensor = left.mT @ ((2 * codes / max_code - 1) * half) @ right / rescale
    return quantized


def textbook_awq_scale(weight: Tensor, inputs: Tensor, bits: int, grid: int = 20) -> Tensor:
    """Lin et al. 2023, section 3.2, for a linear inspected by itself: its outputs, for each of the candidates.

    inputs: [tokens, in]. Returns the scale [in] of the smallest mean squared change.
    """
    outputs, mean_abs = inputs @ weight.mT, inputs.abs().mean(0)
    best, smallest = torch.ones_like(mean_abs), float("inf")
    for step in range(grid):
        scale: Tensor = mean_abs.pow(step / grid).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        changed = inputs @ (_nearest(weight * scale, bits) / scale).mT
        loss = float((outputs - changed).square().mean())
        if loss < smallest:
            best, smallest = scale, loss
    return best


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return q


def _nearest(weight: Tensor, bits: int) -> Tensor:
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    scale: Tensor = (high - low) / (2**bits - 1)
    zero_point = torch.round(-low / scale)
    codes: Tensor = (torch.round(weight / scale) + zero_point).clamp(0, 2**bits - 1)
    return (codes - zero_point) * scale
