"""Greedy passes over the columns of a rounded matrix."""

from kernels.coordinate_descent.reference import improve_columns

__all__ = ["improve_columns"]
