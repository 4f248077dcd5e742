"""Which sizes have a Hadamard matrix here, and how it is made. Torch-free: the planner asks first.

A size is K 2^k with a K from Paley's constructions (Paley 1933) or a product of such, and 2^k from Sylvester's. That
covers the sizes of common models without a table of signs: 11008 = 344 32, 13824 = 108 128, 14336 = 28 512.
"""

import functools
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Paley:
    """Over the field with q = prime^degree elements: order q + 1 where q = 3 mod 4, 2 (q + 1) where q = 1 mod 4."""

    prime: int
    degree: int

    @property
    def field_size(self) -> int:
        return int(self.prime**self.degree)


@dataclass(frozen=True)
class Product:
    """The Kronecker product of matrices of two orders."""

    first: int
    second: int


@functools.cache
def base_order(size: int) -> int | None:
    """The smallest K with size = K 2^k that has a construction of its own (1 has); null where no K does."""
    odd = size & -size  # the power of two in it
    candidates = (size // odd * 2**k for k in range(odd.bit_length()))
    return next((order for order in candidates if order == 1 or construction(order)), None)


@functools.cache
def construction(order: int) -> Paley | Product | None:
    """How the matrix of an order that is no power of two is made; null where none is known here."""
    if order % 4:
        return None
    for field_size, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        prime, degree = _prime_power(field_size)
        if prime and field_size % 4 == remainder:
            return Paley(prime, degree)
    for first in range(12, math.isqrt(order) + 1, 4):  # 12 is the smallest that is no power of two
        if order % first == 0 and construction(first) and construction(order // first):
            return Product(first, order // first)
    return None


def missing(size: int) -> str | None:
    """Why there is no Hadamard matrix of this size here, or null where there is."""
    if base_order(size) is not None:
        return None
    return f"no Hadamard matrix of size {size} can be made: no K with {size} = K 2^k is 1, Paley's or a product of them"


def _prime_power(number: int) -> tuple[int, int]:
    """(p, k) with p^k = number; (0, 0) where there is no such prime."""
    if number < 2:
        return 0, 0
    prime = next((d for d in range(2, math.isqrt(number) + 1) if number % d == 0), number)
    degree = 0
    while number % prime == 0:
        number //= prime
        degree += 1
    return (prime, degree) if number == 1 else (0, 0)
