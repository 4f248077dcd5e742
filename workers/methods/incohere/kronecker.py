"""QuIP's incoherence: a diagonal rescale, then two-factor orthogonals with permutations (Chee et al. 2023)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import KroneckerIncohere
from workers.methods.incohere.basis import Basis
from workers.methods.incohere.rescale import rescale_of
from workers.methods.orthogonal import haar


@dataclass(frozen=True)
class KroneckerOrthogonal:
    """V = P_out (O1 (x) O2) P_in on dimension p q, with one pair of factors, or with one for each position of a block.

    first: [1 or q, p, p], second: [1 or p, q, q], float64. before, after: [p q], the permutations as indices.
    """

    first: Tensor
    second: Tensor
    before: Tensor
    after: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., p q] becomes V x."""
        grid = self._grid(_permuted(vectors, self.before))
        turned = _along_second(_along_first(grid, self.first), self.second)
        return _permuted(turned.reshape(vectors.shape), self.after)

    def inverse(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., p q] becomes V^T x."""
        grid = self._grid(_permuted(vectors, self.after.argsort()))
        turned = _along_first(_along_second(grid, self.second.mT), self.first.mT)
        return _permuted(turned.reshape(vectors.shape), self.before.argsort())

    def _grid(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(-1, self.first.shape[-1], self.second.shape[-1])


def make_basis(weight: Tensor, hessian: Tensor | None, conf: KroneckerIncohere, seed: int) -> Basis:
    """A basis of its own for one linear: equal seeds give equal orthogonals, whatever ran before.

    weight: [out, in]. hessian: [in, in], mean over tokens of x x^T, undamped; only the rescale needs it.
    """
    rescale = rescale_of(weight, hessian) if conf.rescale else None
    return draw_basis(weight.shape[0], weight.shape[1], conf, seed, rescale)


def draw_basis(
    out_features: int, in_features: int, conf: KroneckerIncohere, seed: int, rescale: Tensor | None
) -> Basis:
    """The basis of a seed."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (draw_orthogonal(n, blocks=conf.blocks, generator=generator) for n in (out_features, in_features))
    return Basis(left, right, rescale, conf.trace_damping, seed)


def draw_orthogonal(size: int, *, blocks: bool, generator: torch.Generator) -> KroneckerOrthogonal:
    """Haar factors and uniform permutations of one dimension."""
    p, q = factor_pair(size)
    first = torch.stack([haar(p, generator) for _ in range(q if blocks else 1)])
    second = torch.stack([haar(q, generator) for _ in range(p if blocks else 1)])
    before, after = (torch.randperm(size, generator=generator) for _ in range(2))
    return KroneckerOrthogonal(first, second, before, after)


def factor_pair(size: int) -> tuple[int, int]:
    """p q = size: the products of every other prime factor, ascending. 4096: (64, 64), 11008: (688, 16), 7: (7, 1)."""
    primes = []
    divisor = 2
    while size > 1:
        while size % divisor == 0:
            primes.append(divisor)
            size //= divisor
        divisor += 1
    return math.prod(primes[::2]), math.prod(primes[1::2])


def _permuted(vectors: Tensor, order: Tensor) -> Tensor:
    """Entries of [..., n] in the order [n]."""
    return vectors.index_select(-1, order.to(vectors.device))


def _along_first(grid: Tensor, factors: Tensor) -> Tensor:
    """[N, p, q], the axis p turned by [1 or q, p, p]."""
    factors = factors.to(grid)
    return factors[0] @ grid if len(factors) == 1 else torch.einsum("jab,nbj->naj", factors, grid)


def _along_second(grid: Tensor, factors: Tensor) -> Tensor:
    """[N, p, q], the axis q turned by [1 or p, q, q]."""
    factors = factors.to(grid)
    return grid @ factors[0].mT if len(factors) == 1 else torch.einsum("iab,nib->nia", factors, grid)
