"""Columns in an order, each on the grid of its group: what GPTQ with fixed grids and LDLQ share."""

import torch
from torch import Tensor

from kernels.column_rounding import round_columns
from workers.methods.grid import ColumnParams


def round_in_order(
    weight: Tensor,
    order: Tensor,
    feedback: Tensor,
    params: ColumnParams,
    block_size: int,
    drift: Tensor | None = None,
) -> Tensor:
    """Codes [out, in] uint8, in the weight's own column order.

    order: [in], the columns in the order they are rounded in. feedback, drift: [in, in], of the reordered
    problem (`round_columns`).
    """
    grid = params.for_loop(weight)
    codes = round_columns(
        grid.weight.index_select(1, order),
        feedback,
        grid.scale,
        grid.zero_point,
        grid.group_of_column[order],
        max_code=grid.max_code,
        block_size=block_size,
        drift=drift,
    )
    return codes.index_select(1, torch.argsort(order))
