"""One pass of coordinate descent on the proxy loss, in torch: one matrix product for each column block."""

import torch
from torch import Tensor

from kernels.precision import full_float32


@full_float32()
def improve_columns(
    weight: Tensor,
    codes: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    group_of_column: Tensor,
    *,
    max_code: int | Tensor,
    block_size: int,
) -> Tensor:
    """Give each column, last to first, its best codes with all others fixed; the loss tr(E H E^T) never grows.

    With E = Q - W: q_k <- the grid point nearest to q_k - (E H)_k / H_kk, clamped inside the update, so that E is
    always the error of the codes (QuIP's code clamps after the pass and goes on with a stale E; Chee et al. 2023).

    weight: [out, in] float32 or float64, the dtype everything is computed in. codes: [out, in] uint8. hessian:
    [in, in], symmetric, its diagonal positive. scale, zero_point: [out, groups], zero points integers. group_of_column:
    [in] integers. max_code: one for all, or [out, groups]. Returns codes [out, in] uint8.
    """
    scales, zeros = scale.mT.to(weight.dtype).contiguous(), zero_point.mT.to(weight.dtype).contiguous()
    largest = torch.as_tensor(max_code, dtype=weight.dtype, device=weight.device).expand(scale.shape).mT.contiguous()
    groups = group_of_column.tolist()
    new = codes.mT.contiguous()
    values = new.to(weight.dtype).sub_(zeros[group_of_column]).mul_(scales[group_of_column])
    error = values - weight.mT.contiguous()
    diagonal = hessian.diagonal().tolist()
    for stop in range(len(new), 0, -block_size):
        start = max(stop - block_size, 0)
        gradient = hessian[start:stop] @ error  # (E H)^T of the block, for the errors as they are now
        moved = torch.empty_like(gradient)
        for k in reversed(range(start, stop)):
            s, z = scales[groups[k]], zeros[groups[k]]
            pull = torch.addmv(gradient[k - start], moved[k + 1 - start :].mT, hessian[k, k + 1 : stop])
            best = values[k] - pull / diagonal[k]
            code = best.div_(s).round_().add_(z).clamp_(min=0).minimum(largest[groups[k]])
            value = (code - z) * s
            moved[k - start] = value - values[k]
            new[k], values[k] = code, value
        error[start:stop] += moved
    return new.mT.contiguous()
