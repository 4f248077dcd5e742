"""Damping a Hessian and factoring it, with a ladder of steps for one that resists."""

from dataclasses import dataclass

from torch import Tensor

from kernels.factorization import unit_upper_factor
from workers.methods.errors import IndefiniteHessianError

DAMPING_STEPS = (1, 10, 100)


@dataclass(frozen=True)
class Factor:
    """feedback, pivots: unit upper A [in, in] and diagonal D [in] of H = A D A^T.

    damping: fraction of the mean diagonal that was added. retries: how often it was raised from the configured value.
    """

    feedback: Tensor
    pivots: Tensor
    damping: float
    retries: int


def factor_damped(hessian: Tensor, damping: float) -> Factor:
    """Factor H + damping x mean(live diagonal) x I.

    hessian: [in, in] float32 or float64, finite; it is symmetrised first. A dead column (zero diagonal: the input was
    never active) counts neither in the mean nor in the factor. When the Cholesky fails, the damping is raised to 10 and
    100 times its value, and there float64 is tried last; the result has the Hessian's dtype in any case.
    Raises IndefiniteHessianError when nothing helps, or when no column is alive.
    """
    sound, mean = _sound(hessian)
    if mean > 0:
        diagonal = sound.diagonal().clone()
        for retries, step in enumerate(DAMPING_STEPS):
            sound.diagonal().copy_(diagonal + step * damping * mean)
            found = unit_upper_factor(sound)
            if found is not None:
                return Factor(*found, step * damping, retries)
        step, retries = DAMPING_STEPS[-1], len(DAMPING_STEPS) - 1
        sound, diagonal = sound.double(), diagonal.double()
        sound.diagonal().copy_(diagonal + step * damping * mean)
        found = unit_upper_factor(sound)
        if found is not None:
            feedback, pivots = (part.to(hessian.dtype) for part in found)
            return Factor(feedback, pivots, step * damping, retries)
    raise IndefiniteHessianError(
        f"Hessian not positive definite at damping up to {DAMPING_STEPS[-1] * damping:g}, nor in float64; "
        "raise method.round.damping or calibration.num_sequences"
    )


def damp(hessian: Tensor, damping: float) -> Tensor:
    """The matrix that `factor_damped` factors: symmetric, dead diagonal entries the live mean, damping added."""
    sound, mean = _sound(hessian)
    sound.diagonal().add_(damping * mean)
    return sound


def _sound(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric, with the mean of the live diagonal in place of dead entries; and that mean."""
    diagonal = hessian.diagonal()
    live = diagonal != 0
    if not live.any():
        raise IndefiniteHessianError(
            "the Hessian is zero, no calibration token reached this linear; raise calibration.num_sequences"
        )
    mean = diagonal[live].mean()
    sound = hessian.mT.contiguous()  # first copied, then added: a sum of both orders of storage is far slower
    sound.add_(hessian).div_(2)
    sound.diagonal()[~live] = mean
    return sound, mean
