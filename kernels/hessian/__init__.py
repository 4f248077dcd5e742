"""Second moments of activations."""

from kernels.hessian.reference import accumulate_gram

__all__ = ["accumulate_gram"]
