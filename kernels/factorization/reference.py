"""One Cholesky of the flipped Hessian, in place of GPTQ's Cholesky, inverse, Cholesky."""

import torch
from torch import Tensor

from kernels.precision import full_float32


@full_float32()
def unit_upper_factor(hessian: Tensor) -> tuple[Tensor, Tensor] | None:
    """A and D of H = A D A^T, A unit upper triangular; None when H is not numerically positive definite.

    With P the reversal of order, chol(P H P) = L gives H = R R^T for the upper R = P L P, and A = R / diag(R). GPTQ's
    upper factor U of the inverse (H^-1 = U^T U) is R^-1, so both lead to the same codes; R takes n^3/3 operations and
    no inverse.

    hessian: [in, in] float32 or float64, symmetric; only one triangle is read. Returns A [in, in] and the
    diagonal of D [in], of the same dtype.
    """
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if int(info) != 0:
        return None
    root = lower.diagonal().clone()
    return lower.div_(root).flip(0, 1), root.square_().flip(0)
