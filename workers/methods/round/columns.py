"""Columns in an order, each on the grid of its group: what GPTQ with fixed grids and LDLQ share."""

import torch
from torch import Tensor

from kernels.column_rounding import round_columns
from workers.methods.grid import QuantParams, on_integers


def round_in_order(weight: Tensor, order: Tensor, feedback: Tensor, params: QuantParams, block_size: int) -> Tensor:
    """Codes [out, in] uint8, in the weight's own column order.

    order: [in], the columns in the order they are rounded in. feedback: [in, in] unit upper, of the reordered Hessian.
    """
    moved, integral = on_integers(weight, params)
    codes = round_columns(
        moved[:, order],
        feedback,
        integral.scale,
        integral.zero_point,
        order // (weight.shape[1] // params.scale.shape[1]),
        max_code=params.max_code,
        block_size=block_size,
    )
    return codes[:, torch.argsort(order)]
