"""QuIP's diagonal rescale of a linear's inputs, before a basis spreads what is left (Chee et al. 2023)."""

import torch
from torch import Tensor

SMALLEST = 1e-8  # of the largest entry of H; of the energy of a column of W; of d


def rescale_of(weight: Tensor, hessian: Tensor | None) -> Tensor:
    """d = (diag H / diag W^T W)^(1/4), [in] float32 as float16 stores it; its geometric mean is made 1.

    It minimises tr(D^-1 H D^-1) ||W D||_F^2, which bounds the loss of a rounded matrix. weight: [out, in]. hessian:
    [in, in], mean over tokens of x x^T, undamped. Raises ValueError without one.
    """
    if hessian is None:
        raise ValueError("QuIP's rescale needs a Hessian")
    diagonal = hessian.diagonal() / hessian.abs().max().clamp(min=torch.finfo(hessian.dtype).tiny)
    diagonal = diagonal.clamp(min=SMALLEST)
    energy = weight.square().sum(0).clamp(min=SMALLEST)
    logarithm = (diagonal.log() - energy.log()) / 4
    return (logarithm - logarithm.mean()).exp().clamp(min=SMALLEST).half().float()
