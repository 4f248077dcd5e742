"""QuaRot's rotation: a Hadamard matrix with random signs (Ashkboos et al. 2024)."""

import torch

from conf.schema import HadamardIncohere, HadamardRotate, IncohereConf, MethodConf, NoIncohere
from workers.methods.hadamard import SignedHadamard, draw_signed


def draw_orthogonal(size: int, seed: int) -> SignedHadamard:
    """V [size, size] of a seed: hidden states h become V h. Raises MethodError naming a size that has none."""
    return draw_signed(size, torch.Generator().manual_seed(seed))


def intermediate_basis(method: MethodConf) -> IncohereConf:
    """The basis of a linear whose input no fold reaches: its own where the method gives it one, else of its inputs.

    The inputs then need a transform when the model runs.
    """
    rotate = method.rotate
    if isinstance(method.incohere, NoIncohere) and isinstance(rotate, HadamardRotate) and rotate.intermediate:
        return HadamardIncohere(sides="input")
    return method.incohere
