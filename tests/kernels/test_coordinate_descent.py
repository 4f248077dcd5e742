"""A greedy pass against its formula; blocks change nothing."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kernels.coordinate_descent import improve_columns


def _problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    inputs = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    scale = torch.rand(6, 2, generator=generator, dtype=torch.float64) + 0.2
    zero_point = torch.randint(0, 8, (6, 2), generator=generator)
    codes = torch.randint(0, 8, (6, 20), generator=generator).to(torch.uint8)
    return weight, codes, inputs.mT @ inputs, scale, zero_point, torch.arange(20) // 10


def _formula(
    weight: Tensor, codes: Tensor, hessian: Tensor, scale: Tensor, zero_point: Tensor, groups: Tensor
) -> tuple[Tensor, list[float]]:
    """Column by column, the gradient computed anew each time; also the loss after each."""
    codes, losses = codes.double(), []
    s, z = scale[:, groups], zero_point[:, groups].double()
    for k in reversed(range(weight.shape[1])):
        error = s * (codes - z) - weight
        best = s[:, k] * (codes[:, k] - z[:, k]) - (error @ hessian)[:, k] / hessian[k, k]
        codes[:, k] = (torch.round(best / s[:, k]) + z[:, k]).clamp(0, 7)
        error = s * (codes - z) - weight
        losses.append(float((error @ hessian * error).sum()))
    return codes.to(torch.uint8), losses


@pytest.mark.parametrize("block_size", [1, 7, 20, 128])
def test_codes_follow_the_formula_whatever_the_block_size(block_size: int) -> None:
    problem = _problem()
    expected, _ = _formula(*problem)
    assert torch.equal(improve_columns(*problem, max_code=7, block_size=block_size), expected)


def test_06_no_update_of_a_column_raises_the_loss() -> None:
    _, losses = _formula(*_problem())
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))


def test_inputs_are_left_as_they_were() -> None:
    problem = _problem()
    before = [tensor.clone() for tensor in problem]
    improve_columns(*problem, max_code=7, block_size=8)
    assert all(torch.equal(a, b) for a, b in zip(problem, before, strict=True))
