"""Rounding a linear in another basis: W' = U W diag(d) V^T, x' = V diag(1/d) x, H' = V diag(1/d) H diag(1/d) V^T."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Orthogonal(Protocol):
    """An orthogonal matrix V [n, n] that is never written out."""

    def apply(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V x."""

    def inverse(self, vectors: Tensor) -> Tensor:
        """Each row x of [..., n] becomes V^T x."""


@dataclass(frozen=True)
class Basis:
    """left U [out, out], right V [in, in]; rescale d [in] float32, exactly what is stored in float16, or null.

    damping: fraction of its mean diagonal that is added to the Hessian in this basis, before any rounding's own. seed:
    what U and V are drawn from; it is stored in their place.
    """

    left: Orthogonal
    right: Orthogonal
    rescale: Tensor | None
    damping: float
    seed: int

    def of_weight(self, weight: Tensor) -> Tensor:
        """W [out, in] -> W'."""
        scaled = weight if self.rescale is None else weight * self.rescale.to(weight.dtype)
        return self.left.apply(self.right.apply(scaled).mT).mT.contiguous()

    def of_hessian(self, hessian: Tensor) -> Tensor:
        """H [in, in] -> H', symmetric like it, damped."""
        scaled = hessian
        if self.rescale is not None:
            inverse = self.rescale.to(hessian.dtype).reciprocal()
            scaled = hessian * inverse * inverse[:, None]
        turned = self.right.apply(self.right.apply(scaled).mT)
        turned.diagonal().add_(self.damping * turned.diagonal().mean())
        return turned

    def back(self, weight: Tensor) -> Tensor:
        """W' [out, in] -> W."""
        scaled = self.right.inverse(self.left.inverse(weight.mT).mT)
        return scaled if self.rescale is None else scaled / self.rescale.to(weight.dtype)
