"""Second moments of activations."""

from kernels.hessian.reference import accumulate_cross, accumulate_gram

__all__ = ["accumulate_cross", "accumulate_gram"]
