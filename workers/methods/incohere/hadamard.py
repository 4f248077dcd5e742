"""QuIP#'s incoherence: random signs and a fast Hadamard transform (Tseng et al. 2024)."""

import torch
from torch import Tensor

from conf.schema import HadamardIncohere
from workers.methods.hadamard import draw_signed
from workers.methods.incohere.basis import Basis
from workers.methods.incohere.rescale import rescale_of
from workers.methods.orthogonal import Identity


def make_basis(weight: Tensor, hessian: Tensor | None, conf: HadamardIncohere, seed: int) -> Basis:
    """A basis of its own for one linear: equal seeds give equal orthogonals, whatever ran before.

    weight: [out, in]. hessian: [in, in], mean over tokens of x x^T, undamped; only the rescale needs it. Raises
    MethodError naming a size that has no Hadamard matrix.
    """
    rescale = rescale_of(weight, hessian) if conf.rescale else None
    return draw_basis(weight.shape[0], weight.shape[1], conf, seed, rescale)


def draw_basis(out_features: int, in_features: int, conf: HadamardIncohere, seed: int, rescale: Tensor | None) -> Basis:
    """The basis of a seed; with sides=input that of the inputs alone."""
    generator = torch.Generator().manual_seed(seed)
    right = draw_signed(in_features, generator)
    left = Identity() if conf.sides == "input" else draw_signed(out_features, generator)
    return Basis(left, right, rescale, damping=0.0, seed=seed)
