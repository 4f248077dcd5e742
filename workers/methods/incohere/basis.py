"""Rounding a linear in another basis: W' = U W diag(d) V^T, x' = V diag(1/d) x, H' = V diag(1/d) H diag(1/d) V^T."""

from dataclasses import dataclass, replace

from torch import Tensor

from workers.methods.orthogonal import Orthogonal
from workers.methods.statistics import Statistics


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
        turned = self._turned(hessian)
        turned.diagonal().add_(self.damping * turned.diagonal().mean())
        return turned

    def _turned(self, matrix: Tensor) -> Tensor:
        """V D^-1 M D^-1 V^T of any M [in, in]."""
        if self.rescale is not None:
            inverse = self.rescale.to(matrix.dtype).reciprocal()
            matrix = matrix * inverse * inverse[:, None]
        return self.right.apply(self.right.apply(matrix).mT).mT.contiguous()

    def of_statistics(self, statistics: Statistics) -> Statistics:
        """The same calibration as a linear in this basis sees it. Cross-Hessians turn like Hessians, undamped."""
        hessian, cross, inputs = statistics.hessian, statistics.cross_hessian, statistics.inputs
        return replace(
            statistics,
            hessian=None if hessian is None else self.of_hessian(hessian),
            cross_hessian=None if cross is None else self._turned(cross),
            inputs=None if inputs is None else self.of_inputs(inputs),
        )

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """Rows x of [tokens, in] -> x'."""
        return self.right.apply(inputs if self.rescale is None else inputs / self.rescale.to(inputs.dtype))

    def back(self, weight: Tensor) -> Tensor:
        """W' [out, in] -> W."""
        scaled = self.right.inverse(self.left.inverse(weight.mT).mT)
        return scaled if self.rescale is None else scaled / self.rescale.to(weight.dtype)
