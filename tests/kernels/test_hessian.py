"""Gram matrices against the plain product."""

import pytest
import torch

from kernels.hessian import accumulate_gram
from kernels.hessian.reference import COLUMNS_AT_ONCE, ROWS_AT_ONCE


def test_batches_add_up_to_the_product_of_all_rows() -> None:
    inputs = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros(7, 7, dtype=torch.float64)

    for batch in inputs:
        accumulate_gram(total, batch)

    rows = inputs.reshape(-1, 7)
    torch.testing.assert_close(total, rows.mT @ rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    inputs = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    total = torch.zeros(16, 16)

    accumulate_gram(total, inputs)

    exact = inputs.double().mT @ inputs.double()
    bound = 1000 * torch.finfo(torch.float32).eps * (inputs.double().abs().mT @ inputs.double().abs())
    assert ((total.double() - exact).abs() <= bound).all()  # the bound of any order of float32 sums


@pytest.mark.parametrize("size", [COLUMNS_AT_ONCE - 1, COLUMNS_AT_ONCE, 2 * COLUMNS_AT_ONCE + 3])
def test_strips_make_up_the_whole_and_it_is_symmetric(size: int) -> None:
    inputs = torch.randn(40, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.ones(size, size, dtype=torch.float64)

    accumulate_gram(total, inputs)

    torch.testing.assert_close(total, 1 + inputs.mT @ inputs)
    torch.testing.assert_close(total, total.mT)


def test_more_rows_than_fit_at_once_are_all_counted() -> None:
    total = torch.zeros(1, 1)

    accumulate_gram(total, torch.ones(ROWS_AT_ONCE + 3, 1))

    assert total.item() == ROWS_AT_ONCE + 3
