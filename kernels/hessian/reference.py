"""Sums of x x^T over tokens."""

import torch
from torch import Tensor

from kernels.precision import full_float32

ROWS_AT_ONCE = 8192  # bounds the copy of half-precision inputs
COLUMNS_AT_ONCE = 128  # a strip of the sum; what is symmetric is not computed, and the strips' diagonal blocks are


@full_float32()
def accumulate_gram(total: Tensor, inputs: Tensor) -> None:
    """Add X^T X to `total` in place. The Hessian is the total divided by the number of tokens.

    Strips of the lower triangle are products, the upper one is their copy: a little over half the operations.
    total: [in, in] float32 or float64, symmetric. inputs: [..., in], any float dtype; products and sums are in total's
    dtype.
    """
    for rows in torch.split(inputs.reshape(-1, inputs.shape[-1]), ROWS_AT_ONCE):
        x = rows.to(total.dtype)
        for start in range(0, len(total), COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, len(total))
            total[start:stop, :stop].addmm_(x[:, start:stop].mT, x[:, :stop])
    for start in range(COLUMNS_AT_ONCE, len(total), COLUMNS_AT_ONCE):
        strip = slice(start, start + COLUMNS_AT_ONCE)
        total[:start, strip] = total[strip, :start].mT


@full_float32()
def accumulate_cross(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add L^T R to `total` in place. total: [in, in] float32 or float64. left, right: [tokens, in], any float dtype."""
    total.addmm_(left.to(total.dtype).mT, right.to(total.dtype))
