"""How grids are fitted: ranges worked out by hand, and the search against trying everything."""

import pytest
import torch

from conf.schema import MinmaxClip, MseClip, UniformScheme
from workers.methods.clip import minmax, mse
from workers.methods.grid import dequantize, quantize

EXACT = "float32"


def _values(row: list[float], scheme: UniformScheme) -> tuple[float, int]:
    params = minmax.fit_grid(torch.tensor([row]), MinmaxClip(), scheme)
    return params.scale.item(), int(params.zero_point.item())


@pytest.mark.parametrize(
    ("row", "scale", "zero_point"),
    [
        ([-1.0, 2.0, 0.5], 1.0, 1),
        ([1.0, 2.0, 3.0], 1.0, 0),  # all positive: zero stays inside the range
        ([-3.0, -1.0, -2.0], 1.0, 3),
        ([0.0, 0.0, 0.0], 2 / 3, 2),  # 1.5, half to even
    ],
)
def test_asymmetric_grid_spans_the_range_with_zero_inside(row: list[float], scale: float, zero_point: int) -> None:
    found = _values(row, UniformScheme(bits=2, scale_dtype=EXACT))

    assert found == (float(torch.tensor(scale)), zero_point)


@pytest.mark.parametrize("row", [[-3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
def test_symmetric_grid_is_mirrored_whatever_the_signs(row: list[float]) -> None:
    assert _values(row, UniformScheme(bits=2, symmetric=True, scale_dtype=EXACT)) == (2.0, 2)


def test_symmetric_levels_reach_half_a_step_below_and_stop_half_a_step_short() -> None:
    params = minmax.fit_grid(
        torch.tensor([[-3.0, 3.0]]), MinmaxClip(), UniformScheme(bits=2, symmetric=True, scale_dtype=EXACT)
    )

    levels = dequantize(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), params)

    assert levels.tolist() == [[-4.0, -2.0, 0.0, 2.0]]


def test_each_group_has_its_own_range() -> None:
    params = minmax.fit_grid(
        torch.tensor([[0.0, 3.0, 0.0, 6.0]]), MinmaxClip(), UniformScheme(bits=2, group_size=2, scale_dtype=EXACT)
    )

    assert params.scale.tolist() == [[1.0, 2.0]]


def test_mse_search_finds_what_trying_every_shrink_finds() -> None:
    weight = torch.randn(300, 32, generator=torch.Generator().manual_seed(0)) ** 3
    scheme = UniformScheme(bits=3, group_size=16, scale_dtype=EXACT)
    clip = MseClip(steps=80, norm=2.4)

    found = mse.fit_grid(weight, clip, scheme)

    groups = weight.reshape(300, 2, 16)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    errors = []
    for step in range(clip.steps):
        scale = (high - low) * (1 - step / 100) / 7
        zero_point = torch.round(-low * (1 - step / 100) / scale)
        levels = scale * ((torch.round(groups / scale) + zero_point).clamp(0, 7) - zero_point)
        errors.append((levels - groups).abs().pow(2.4).sum(-1))
    smallest = torch.stack(errors).amin(0)
    error = (dequantize(quantize(weight, found), found) - weight).abs().pow(2.4).reshape(300, 2, 16).sum(-1)
    torch.testing.assert_close(error, smallest)


def test_one_step_of_mse_search_is_minmax() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    scheme = UniformScheme(bits=3)

    searched = mse.fit_grid(weight, MseClip(steps=1), scheme)
    plain = minmax.fit_grid(weight, MinmaxClip(), scheme)

    assert torch.equal(searched.scale, plain.scale)
    assert torch.equal(searched.zero_point, plain.zero_point)


def test_weights_already_on_the_grid_are_not_clipped() -> None:
    weight = torch.arange(8.0).repeat(3, 1) - 3

    assert torch.equal(
        mse.fit_grid(weight, MseClip(), UniformScheme(bits=3, scale_dtype=EXACT)).scale, torch.ones(3, 1)
    )


def test_widest_of_equally_good_ranges_wins() -> None:
    scheme = UniformScheme(bits=3, scale_dtype=EXACT)
    zeros = torch.zeros(2, 4)

    assert torch.equal(mse.fit_grid(zeros, MseClip(), scheme).scale, minmax.fit_grid(zeros, MinmaxClip(), scheme).scale)
