"""The factor of a Hessian that column rounding feeds errors back with."""

from kernels.factorization.reference import unit_upper_factor

__all__ = ["unit_upper_factor"]
