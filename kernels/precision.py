"""float32 means float32: TF32 and bfloat16 shortcuts of matrix products are off inside our operations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Run matrix products of float32 tensors at full precision, whatever the process asked for; use as a decorator."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
