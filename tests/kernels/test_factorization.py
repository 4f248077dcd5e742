"""The factor of a Hessian against its definition."""

import torch

from kernels.factorization import unit_upper_factor


def _positive_definite(size: int) -> torch.Tensor:
    inputs = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return inputs.mT @ inputs / (2 * size)


def test_hessian_is_unit_upper_times_diagonal_times_its_transpose() -> None:
    hessian = _positive_definite(24)

    found = unit_upper_factor(hessian)

    assert found is not None
    factor, pivots = found
    assert torch.equal(factor.diagonal(), torch.ones(24, dtype=torch.float64))
    assert torch.equal(factor, factor.triu())
    inverse = torch.linalg.inv(factor)
    middle = inverse @ hessian @ inverse.mT
    torch.testing.assert_close(middle, torch.diag(pivots), rtol=0, atol=1e-12)


def test_diagonal_of_the_middle_is_one_over_the_squared_diagonal_of_the_inverse_factor() -> None:
    hessian = _positive_definite(24)
    found = unit_upper_factor(hessian)
    assert found is not None
    factor, pivots = found

    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)

    torch.testing.assert_close(torch.linalg.inv(upper), factor / upper.diagonal())
    torch.testing.assert_close(pivots, upper.diagonal() ** -2)


def test_indefinite_hessian_has_no_factor() -> None:
    assert unit_upper_factor(torch.diag(torch.tensor([1.0, -1.0, 1.0]))) is None
