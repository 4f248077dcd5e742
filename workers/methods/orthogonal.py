"""Orthogonal matrices that turn vectors: the protocol, and those that need no more than torch."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Orthogonal(Protocol):
    """An orthogonal matrix V [n, n] that need not be written out."""

    def apply(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V x."""

    def inverse(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V^T x."""


class Identity:
    """V = I."""

    def apply(self, vectors: Tensor) -> Tensor:
        """[..., n] as it is."""
        return vectors

    def inverse(self, vectors: Tensor) -> Tensor:
        """[..., n] as it is."""
        return vectors


@dataclass(frozen=True)
class DenseOrthogonal:
    """matrix: V [n, n] float64."""

    matrix: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V x."""
        return vectors @ self.matrix.to(vectors).mT

    def inverse(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V^T x."""
        return vectors @ self.matrix.to(vectors)


@dataclass(frozen=True)
class BlockDiagonal:
    """V = I (x) B with B [size, size]: every `size` neighbouring entries are turned by themselves."""

    block: Orthogonal
    size: int

    def apply(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V x."""
        return self.block.apply(vectors.unflatten(-1, (-1, self.size))).flatten(-2)

    def inverse(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V^T x."""
        return self.block.inverse(vectors.unflatten(-1, (-1, self.size))).flatten(-2)


def haar(size: int, generator: torch.Generator) -> Tensor:
    """Uniform over the orthogonal matrices [size, size], float64.

    QR of a Gaussian matrix with the signs of R taken out (Mezzadri 2007).
    """
    q: Tensor
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q.mul_(r.diagonal().sign())
