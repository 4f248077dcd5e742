"""LDLQ for codes of several columns: the block recursion of QuIP#, and passes that lower its loss (Tseng et al. 2024).

With vectors of one column both are QuIP's LDLQ and its greedy passes.
"""

import torch
from torch import Tensor

from kernels.precision import full_float32
from workers.methods.grid import Params


def feedback_of_vectors(feedback: Tensor, size: int) -> Tensor:
    """L [in, in] of H = L D L^T, unit lower -> the same with D of `size` x `size` blocks. Modified in place.

    Each panel of columns is multiplied by the inverse of its diagonal block, which becomes the identity.
    """
    own = feedback.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    one = torch.eye(size, dtype=feedback.dtype, device=feedback.device).expand_as(own)
    inverse = torch.linalg.solve_triangular(own, one, upper=False, unitriangular=True)
    for panel, factor in zip(feedback.split(size, 1), inverse, strict=True):
        panel.copy_(panel @ factor)
    return feedback


@full_float32()
def round_vectors(weight: Tensor, feedback: Tensor, params: Params, size: int, block_size: int) -> Tensor:
    """Round vectors of `size` columns last to first, each after adding the errors of the vectors after it.

    For vector k, with L = feedback: T_k = W_k + sum over i > k of (W_i - Q_i) L_ik, Q_k nearest to T_k.
    weight: [out, in] float32 or float64. feedback: [in, in], as `feedback_of_vectors` makes it. params: its codes of
    some vectors are those of each of them, side by side. block_size: columns that take up the errors of all columns
    after them in one product; it changes speed and the order of summation. Returns the codes, vector after vector.
    """
    error = torch.empty_like(weight)
    codes: list[Tensor] = []
    for start, stop in _blocks(weight.shape[1], size, block_size):
        target = torch.addmm(weight[:, start:stop], error[:, stop:], feedback[stop:, start:stop])
        for k in range(stop - size, start - 1, -size):
            vector, after = slice(k, k + size), slice(k + size, stop)
            own = torch.addmm(target[:, k - start : k - start + size], error[:, after], feedback[after, vector])
            codes.append(params.nearest(own))
            error[:, vector] = weight[:, vector] - params.values(codes[-1], weight.dtype)
    return torch.cat(codes[::-1], 1)


@full_float32()
def improve_vectors(
    weight: Tensor, codes: Tensor, hessian: Tensor, params: Params, size: int, block_size: int
) -> Tensor:
    """Give each vector, last to first, other codes with all others fixed, row by row where that lowers the loss.

    With E = W - Q: Q_k <- the nearest to Q_k + (E H)_k H_kk^-1, the best that real numbers could do. The nearest is not
    always better where H_kk is no multiple of the identity, and then stays out (the original takes it), so that
    tr(E H E^T) never grows. weight: [out, in] float32 or float64. codes: as `round_vectors` returns them. hessian:
    [in, in], symmetric positive definite.
    """
    codes = codes.clone()
    values = params.values(codes, weight.dtype)
    error = weight - values
    for start, stop in _blocks(weight.shape[1], size, block_size):
        gradient = error @ hessian[:, start:stop]
        moved = torch.zeros_like(gradient)
        for k in range(stop - size, start - 1, -size):
            vector, here, after = slice(k, k + size), slice(k - start, k - start + size), slice(k - start + size, None)
            own = hessian[vector, vector]
            pull = torch.addmm(gradient[:, here], moved[:, after], hessian[k + size : stop, vector], alpha=-1)
            found = params.nearest(values[:, vector] + torch.linalg.solve(own, pull, left=False))
            change = params.values(found, weight.dtype) - values[:, vector]
            change *= (change * (2 * pull - change @ own)).sum(1, keepdim=True) > 0
            better = change.any(1).reshape(-1, *[1] * (codes.dim() - 1))
            place = slice(k // size, k // size + 1)
            codes[:, place] = torch.where(better, found, codes[:, place])
            values[:, vector] += change
            moved[:, here] = change
        error[:, start:stop] -= moved
    return codes


def _blocks(num_columns: int, size: int, block_size: int) -> list[tuple[int, int]]:
    """Ranges of whole vectors, last to first."""
    step = max(block_size // size, 1) * size
    return [(max(stop - step, 0), stop) for stop in range(num_columns, 0, -step)]
