"""The column loop of GPTQ and LDLQ."""

from kernels.column_rounding.reference import round_columns

__all__ = ["round_columns"]
