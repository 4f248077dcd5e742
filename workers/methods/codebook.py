"""Codebooks of vectors: E8P, and at 3 and 4 bits a second codebook for what it leaves (Tseng et al. 2024, QuIP#).

2 bits: E8P. 3 bits: what E8P leaves, 2.04 times, by 256 points of E8. 4 bits: what it leaves, 3.45 times, by E8P again.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods import e8p
from workers.methods.accounting import VECTOR_SIZE
from workers.methods.errors import MethodError
from workers.methods.grid import SMALLEST_SCALE

POINTS_AT_ONCE = 1 << 14  # of a search through all 256 vectors


@dataclass(frozen=True)
class Stage:
    """One codebook. vectors: by code, [2^bits, 8] float32 on a device. nearest: [N, 8] -> [N] int32.

    bits: of a code, for 8 weights. gain: the residual is taken so many times.
    """

    vectors: Callable[[torch.device], Tensor]
    nearest: Callable[[Tensor], Tensor]
    bits: int
    gain: float = 1.0


@functools.cache
def ball_vectors(device: torch.device) -> Tensor:
    """256 points of E8, [256, 8] float32: zero, the 240 of squared norm 2, and 15 of the 16 with a single +-2."""
    whole = [point for point in itertools.product((-1, 0, 1), repeat=VECTOR_SIZE) if sum(map(abs, point)) in (0, 2)]
    halves = [point for point in itertools.product((-0.5, 0.5), repeat=VECTOR_SIZE) if sum(point) % 2 == 0]
    far = [tuple(size * (i == k) for i in range(VECTOR_SIZE)) for size in (2, -2) for k in range(VECTOR_SIZE)]
    return torch.tensor([*whole, *halves, *far[:-1]], dtype=torch.float32, device=device)


def ball_nearest(points: Tensor) -> Tensor:
    """Codes of the nearest of the 256: [N, 8] -> [N] int32."""
    vectors = ball_vectors(points.device).to(points.dtype)
    half_norms = vectors.square().sum(1) / 2
    return torch.cat([(some @ vectors.mT - half_norms).argmax(1).int() for some in points.split(POINTS_AT_ONCE)])


_E8P = Stage(e8p.vectors, e8p.nearest, bits=16)
STAGES = {
    2: (_E8P,),
    3: (_E8P, Stage(ball_vectors, ball_nearest, bits=8, gain=2.04)),
    4: (_E8P, Stage(e8p.vectors, e8p.nearest, bits=16, gain=3.45)),
}

RMS = {2: 1.03, 3: 0.98, 4: 1.03}
"""Bits -> the root mean square that weights are brought to before they are coded."""


@dataclass(frozen=True)
class CodebookParams:
    """A codebook for each vector of 8 neighbouring columns. scale: [1, 1] float32, exactly what float16 holds."""

    scale: Tensor
    bits: int

    @property
    def vector_size(self) -> int:
        """Columns that are coded together."""
        return VECTOR_SIZE

    def nearest(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in / 8, stages] int32, each stage the nearest to what those before it leave."""
        rest = (weight / self.scale.to(weight.dtype)).reshape(-1, VECTOR_SIZE)
        codes = []
        for stage in STAGES[self.bits]:
            codes.append(stage.nearest(rest * stage.gain))
            rest = rest - self._vectors(stage, codes[-1], rest.dtype)
        return torch.stack(codes, -1).reshape(len(weight), -1, len(codes))

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in / 8, stages] int32 -> [out, in] of `dtype`."""
        stages = zip(STAGES[self.bits], codes.unbind(-1), strict=True)
        vectors = sum(self._vectors(stage, code, dtype) for stage, code in stages)
        assert isinstance(vectors, Tensor)
        return (vectors * self.scale.to(dtype)).reshape(len(codes), -1)

    @staticmethod
    def _vectors(stage: Stage, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return stage.vectors(codes.device)[codes.long()].to(dtype) / stage.gain


def fit_codebook(weight: Tensor, constant: float, bits: int) -> CodebookParams:
    """The codebook scaled by `constant` times the RMS of the whole weight [out, in].

    Raises ValueError where 8 does not divide in, MethodError for a scale above float16's largest number.
    """
    if weight.shape[1] % VECTOR_SIZE:
        raise ValueError(
            f"scheme=vector_codebook codes {VECTOR_SIZE} columns together, which do not divide the {weight.shape[1]} "
            "of this linear; set scheme=uniform"
        )
    rms = weight.square().mean(dtype=torch.float64).sqrt()
    scale = (constant * rms).clamp(min=SMALLEST_SCALE).reshape(1, 1)
    if not scale <= torch.finfo(torch.float16).max:
        raise MethodError(f"scale {float(scale):.3g} is above float16's largest number; check the checkpoint's weights")
    return CodebookParams(scale.half().float(), bits)
