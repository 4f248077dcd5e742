"""The column loop against a loop written straight from its formula."""

import pytest
import torch
from torch import Tensor

from kernels.column_rounding import round_columns


def _problem(out_features: int, in_features: int, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(out_features * in_features)
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    feedback = torch.randn(in_features, in_features, generator=generator, dtype=torch.float64).mul_(0.2).triu_(1)
    scale = torch.rand(out_features, groups, generator=generator) + 0.2
    zero_point = torch.randint(0, 16, (out_features, groups), generator=generator, dtype=torch.int32)
    group_of_column = torch.randint(0, groups, (in_features,), generator=generator)
    return weight, feedback + torch.eye(in_features, dtype=torch.float64), scale, zero_point, group_of_column


def _formula(weight: Tensor, feedback: Tensor, scale: Tensor, zero_point: Tensor, groups: Tensor) -> Tensor:
    codes, error = torch.zeros_like(weight), torch.zeros_like(weight)
    for k in range(weight.shape[1]):
        s, z = scale[:, groups[k]].double(), zero_point[:, groups[k]].double()
        target = weight[:, k] + sum((error[:, i] * feedback[i, k] for i in range(k)), torch.zeros(len(weight)))
        codes[:, k] = (torch.round(target / s) + z).clamp(0, 15)
        error[:, k] = weight[:, k] - s * (codes[:, k] - z)
    return codes.to(torch.uint8)


@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (3, 7), (16, 33), (5, 64)])
@pytest.mark.parametrize("block_size", [1, 16, 1000])
def test_codes_follow_the_formula_whatever_the_block_size(out_features: int, in_features: int, block_size: int) -> None:
    problem = _problem(out_features, in_features, groups=3)

    codes = round_columns(*problem, max_code=15, block_size=block_size)

    assert codes.dtype == torch.uint8
    assert torch.equal(codes, _formula(*problem))


def test_entries_of_the_factor_on_and_below_its_diagonal_are_not_read() -> None:
    weight, feedback, scale, zero_point, groups = _problem(8, 40, groups=2)
    garbage = feedback + torch.full_like(feedback, float("nan")).tril()

    assert torch.equal(
        round_columns(weight, garbage, scale, zero_point, groups, max_code=15, block_size=16),
        round_columns(weight, feedback, scale, zero_point, groups, max_code=15, block_size=16),
    )


def test_inputs_are_left_as_they_were() -> None:
    problem = _problem(8, 40, groups=2)
    before = [tensor.clone() for tensor in problem]

    round_columns(*problem, max_code=15, block_size=16)

    assert all(torch.equal(a, b) for a, b in zip(problem, before, strict=True))
