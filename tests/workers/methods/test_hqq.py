"""HQQ: real zero points that make the error sparse."""

import pytest
import torch
from torch import Tensor

from conf.schema import HqqRound, MinmaxClip, RealZeroScheme
from workers.methods.clip.minmax import fit_grid
from workers.methods.grid import QuantParams
from workers.methods.round import hqq, nearest
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def _round(weight: Tensor, bits: int, iterations: int) -> Rounded:
    scheme = RealZeroScheme(bits=bits, group_size=16)
    conf = HqqRound(iterations=iterations)
    return hqq.round_weight(weight, Statistics(), conf, scheme, lambda w: fit_grid(w, MinmaxClip(), scheme))


def _weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 64, generator=generator)
    weight[::7, ::11] *= 6  # outliers
    return weight


def _error(weight: Tensor, rounded: Rounded) -> float:
    return float((weight - rounded.params.values(rounded.codes)).abs().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_error_is_below_that_of_rounding_to_nearest_on_the_fitted_grid(bits: int) -> None:
    weight = _weight()
    assert _error(weight, _round(weight, bits, 20)) < _error(weight, _round(weight, bits, 0))


def test_no_iterations_are_rounding_to_nearest() -> None:
    weight, scheme = _weight(), RealZeroScheme(bits=3, group_size=16)
    plain = nearest.round_weight(weight, Statistics(), HqqRound(), scheme, lambda w: fit_grid(w, MinmaxClip(), scheme))
    assert torch.equal(_round(weight, 3, 0).codes, plain.codes)


def test_more_iterations_are_never_worse_and_scales_stay() -> None:
    weight = _weight()
    results = [_round(weight, 2, iterations) for iterations in (0, 1, 5, 20)]
    errors = [_error(weight, result) for result in results]
    assert errors == sorted(errors, reverse=True)
    params = [result.params for result in results]
    assert all(isinstance(p, QuantParams) and torch.equal(p.scale, params[0].scale) for p in params)  # type: ignore[attr-defined]


def test_zero_points_are_real_numbers_that_float16_holds() -> None:
    params = _round(_weight(), 2, 20).params
    assert isinstance(params, QuantParams)
    assert torch.equal(params.zero_point.half().float(), params.zero_point)
    assert (params.zero_point != params.zero_point.round()).any()


def test_a_weight_of_zeros_stays_zero() -> None:
    zeros = torch.zeros(4, 16)
    rounded = _round(zeros, 2, 20)
    assert torch.equal(rounded.params.values(rounded.codes), zeros)
