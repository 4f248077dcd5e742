"""Hadamard matrices of any size that `orders` knows, and their fast transform."""

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.methods import orders
from workers.methods.errors import MethodError


@dataclass(frozen=True)
class SignedHadamard:
    """V = Had diag(signs) / sqrt(n), Had = Had_K (x) Sylvester; Had_K need not be symmetric, so V^T is another map.

    base: Had_K [K, K] int8. signs: [n] int8.
    """

    base: Tensor
    signs: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V x."""
        return self._transform(vectors * self.signs.to(vectors), self.base)

    def inverse(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V^T x."""
        return self._transform(vectors, self.base.mT) * self.signs.to(vectors)

    def _transform(self, vectors: Tensor, base: Tensor) -> Tensor:
        size, order = len(self.signs), len(base)
        grid = _sylvester(vectors.reshape(-1, order, size // order))
        if order > 1:
            grid = base.to(grid) @ grid
        return grid.mul_(size**-0.5).reshape(vectors.shape)


def draw_signed(size: int, generator: torch.Generator) -> SignedHadamard:
    """A Hadamard matrix with random signs of its columns: QuaRot's, and QuIP#'s randomised transform.

    Raises MethodError naming a size that has none.
    """
    order = orders.base_order(size)
    if order is None:
        raise MethodError(str(orders.missing(size)))
    signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
    return SignedHadamard(hadamard_matrix(order), signs)


@functools.cache
def hadamard_matrix(size: int) -> Tensor:
    """Had of plus and minus one with Had Had^T = size I: [size, size] int8, not to be modified.

    Raises MethodError naming a size that has none.
    """
    order = orders.base_order(size)
    if order is None:
        raise MethodError(str(orders.missing(size)))
    if order == 1:
        return _sylvester(torch.eye(size, dtype=torch.int8)[:, None])[:, 0]
    if order < size:
        return torch.kron(hadamard_matrix(order), hadamard_matrix(size // order))
    made = orders.construction(order)
    if isinstance(made, orders.Product):
        return torch.kron(hadamard_matrix(made.first), hadamard_matrix(made.second))
    assert made is not None
    return _paley(made)


def _sylvester(grid: Tensor) -> Tensor:
    """The last axis, 2^k long, times Sylvester's matrix: butterflies on a copy of [N, K, 2^k]."""
    grid = grid.clone(memory_format=torch.contiguous_format)
    size = grid.shape[-1]
    for half in (1 << level for level in range(size.bit_length() - 1)):
        pairs = grid.view(-1, 2, half)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
    return grid


def _paley(field: orders.Paley) -> Tensor:
    """Paley I, I + S with S skew, where q = 3 mod 4; Paley II, S (x) [[1,1],[1,-1]] + I (x) [[1,-1],[-1,-1]], else."""
    size = field.field_size
    skew = size % 4 == 3
    conference = torch.zeros(size + 1, size + 1, dtype=torch.int8)
    conference[0, 1:] = 1
    conference[1:, 0] = -1 if skew else 1
    conference[1:, 1:] = _jacobsthal(field)
    unit = torch.eye(size + 1, dtype=torch.int8)
    if skew:
        return unit + conference
    ones = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(conference, ones) + torch.kron(unit, diagonal)


def _jacobsthal(field: orders.Paley) -> Tensor:
    """chi(a_i - a_j) over the elements of the field, chi 1 for nonzero squares, -1 for other nonzero: [q, q] int8."""
    place = field.prime ** torch.arange(field.degree)
    digits = torch.arange(field.field_size)[:, None] // place % field.prime
    difference = (digits[:, None] - digits) % field.prime
    return _character(field)[(difference * place).sum(-1)]


def _character(field: orders.Paley) -> Tensor:
    """chi of each element, [q] int8; element sum c_i p^i stands for the polynomial sum c_i x^i.

    The powers of a primitive element are all nonzero elements, the even ones the squares. x is one modulo some monic
    polynomial of the field's degree, which is looked for.
    """
    p, degree = field.prime, field.degree
    for tail in itertools.product(range(p), repeat=degree):  # x^degree = sum tail_i x^i
        powers = _powers_of_x(tail, p)
        if len(powers) == field.field_size - 1:
            chi = torch.zeros(field.field_size, dtype=torch.int8)
            chi[powers[::2]], chi[powers[1::2]] = 1, -1
            return chi
    raise AssertionError(f"the field with {field.field_size} elements has a primitive element")


def _powers_of_x(tail: tuple[int, ...], p: int) -> list[int]:
    """1, x, x^2, ... up to the last before 1 comes again, or nothing where it does not."""
    one = (1, *(0 for _ in tail[1:]))
    element, powers = one, list[int]()
    while len(powers) < p ** len(tail):
        powers.append(sum(c * p**i for i, c in enumerate(element)))
        shifted = (0, *element[:-1])
        element = tuple((s + element[-1] * t) % p for s, t in zip(shifted, tail, strict=True))
        if element == one:
            return powers
    return []
