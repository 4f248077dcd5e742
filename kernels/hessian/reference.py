"""Sums of x x^T over tokens."""

import torch
from torch import Tensor

from kernels.precision import full_float32

ROWS_AT_ONCE = 8192  # bounds the copy of half-precision inputs


@full_float32()
def accumulate_gram(total: Tensor, inputs: Tensor) -> None:
    """Add X^T X to `total` in place. The Hessian is the total divided by the number of tokens.

    total: [in, in] float32 or float64. inputs: [..., in], any float dtype; products and sums are in total's dtype.
    """
    for rows in torch.split(inputs.reshape(-1, inputs.shape[-1]), ROWS_AT_ONCE):
        x = rows.to(total.dtype)
        total.addmm_(x.mT, x)


@full_float32()
def accumulate_cross(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add L^T R to `total` in place. total: [in, in] float32 or float64. left, right: [tokens, in], any float dtype."""
    total.addmm_(left.to(total.dtype).mT, right.to(total.dtype))
