"""The ladder from a Hessian to its factor."""

import pytest
import torch
from torch import Tensor

from kernels.factorization import unit_upper_factor
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import factor_damped


def _hessian(size: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    inputs = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return inputs.mT @ inputs


def _feedback(hessian: Tensor) -> Tensor:
    factor = unit_upper_factor(hessian)
    assert factor is not None
    return factor[0]


def test_damping_is_a_fraction_of_the_mean_diagonal() -> None:
    hessian = _hessian()

    factor = factor_damped(hessian, 0.05)

    damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(factor.feedback, _feedback(damped))
    assert (factor.damping, factor.retries) == (0.05, 0)


def test_08_dead_columns_count_neither_in_the_mean_nor_in_the_factor() -> None:
    live, padded = _hessian(), torch.zeros(20, 20, dtype=torch.float64)
    padded[:12, :12] = live

    factor = factor_damped(padded, 0.05)

    torch.testing.assert_close(factor.feedback[:12, :12], factor_damped(live, 0.05).feedback)
    assert torch.equal(factor.feedback[:, 12:], torch.eye(20, dtype=torch.float64)[:, 12:])


def test_units_of_the_hessian_do_not_matter_even_at_the_ends_of_float32() -> None:
    hessian = _hessian(dtype=torch.float32)

    for exponent in (-100, 100):
        assert torch.equal(factor_damped(hessian * 2.0**exponent, 0.01).feedback, factor_damped(hessian, 0.01).feedback)


def test_hessian_is_symmetrised() -> None:
    hessian = _hessian()
    skew = torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).triu(1)

    torch.testing.assert_close(
        factor_damped(hessian + skew - skew.mT, 0.01).feedback, factor_damped(hessian, 0.01).feedback
    )


def test_singular_hessian_needs_no_retry() -> None:
    column = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))

    assert factor_damped(column @ column.mT, 0.01).retries == 0


@pytest.mark.parametrize(("lowest", "damping", "retries"), [(-0.05, 0.1, 1), (-0.5, 1.0, 2)])
def test_22_slightly_indefinite_hessian_gets_more_damping(lowest: float, damping: float, retries: int) -> None:
    diagonal = torch.ones(12)
    diagonal[0], diagonal[1] = lowest, 2 - lowest  # mean one

    factor = factor_damped(torch.diag(diagonal), 0.01)

    assert (factor.damping, factor.retries) == (damping, retries)


def test_22_float64_is_the_last_step() -> None:
    column = torch.randint(1, 100, (64, 1), generator=torch.Generator().manual_seed(0)).float()
    singular = column @ column.mT  # exact products: only the float32 factorization is in the way
    assert unit_upper_factor(singular) is None

    factor = factor_damped(singular, 1e-9)

    assert (factor.damping, factor.retries) == (100 * 1e-9, 2)
    assert factor.feedback.dtype == torch.float32


@pytest.mark.parametrize("diagonal", [[1.0, 1.0, -9.0], [-1.0, -1.0, -1.0], [3.0, 3.0, -3.5]])
def test_22_indefinite_hessian_is_refused_with_the_damping_tried(diagonal: list[float]) -> None:
    with pytest.raises(IndefiniteHessianError, match=r"damping up to 1, .*raise method.round.damping"):
        factor_damped(torch.diag(torch.tensor(diagonal)), 0.01)


def test_22_zero_hessian_says_that_no_token_came() -> None:
    with pytest.raises(IndefiniteHessianError, match="no calibration token reached this linear"):
        factor_damped(torch.zeros(3, 3), 0.01)
