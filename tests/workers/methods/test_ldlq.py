"""LDLQ against its definition and against GPTQ; its greedy passes; QuIP's grid."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from conf.schema import GptqRound, LdlqRound, MinmaxClip, RmsClip, UniformScheme
from workers.methods.clip import minmax, rms
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import damp
from workers.methods.grid import QuantParams, dequantize, quantize
from workers.methods.loss import proxy_loss
from workers.methods.round import gptq, ldlq, nearest
from workers.methods.statistics import Statistics

PER_ROW = UniformScheme(bits=3, scale_dtype="float32")
NO_GREEDY = LdlqRound(greedy_passes=0)


def _problem(out_features: int = 16, in_features: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(in_features, in_features, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2 * in_features, in_features, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    return weight, inputs.mT @ inputs / len(inputs)


def _minmax(scheme: UniformScheme = PER_ROW) -> Callable[[Tensor], QuantParams]:
    return lambda weight: minmax.fit_grid(weight, MinmaxClip(), scheme)


def _rms(scheme: UniformScheme = PER_ROW) -> Callable[[Tensor], QuantParams]:
    return lambda weight: rms.fit_grid(weight, RmsClip(), scheme)


@pytest.mark.parametrize("fit", [_minmax(), _rms()], ids=["minmax", "rms"])
def test_codes_are_those_of_the_definition(fit: Callable[[Tensor], QuantParams]) -> None:
    """q_i = round(w_i + (w_j - q_j for j > i) L_ji), H = (L + I) D (L + I)^T, last column first."""
    weight, hessian = _problem()
    params = fit(weight)
    lower = torch.linalg.cholesky(damp(hessian, 0.01))
    lower = lower / lower.diagonal()
    scale, zero = params.scale[:, 0].double(), params.zero_point[:, 0].double()
    codes = torch.zeros_like(weight)
    error = torch.zeros_like(weight)
    for i in reversed(range(weight.shape[1])):
        target = weight[:, i] + error[:, i + 1 :] @ lower[i + 1 :, i]
        codes[:, i] = (torch.floor(target / scale + zero + 0.5)).clamp(0, params.max_code)
        error[:, i] = weight[:, i] - scale * (codes[:, i] - zero)
    found = ldlq.round_weight(weight, Statistics(hessian), NO_GREEDY, PER_ROW, fit).codes
    assert torch.equal(found, codes.to(torch.uint8))


@pytest.mark.parametrize("fit", [_minmax(), _rms()], ids=["minmax", "rms"])
def test_03_ldlq_is_gptq_on_flipped_columns(fit: Callable[[Tensor], QuantParams]) -> None:
    weight, hessian = _problem()
    flipped = gptq.round_weight(
        weight.flip(1), Statistics(hessian.flip(0, 1)), GptqRound(act_order=False), PER_ROW, lambda w: fit(w.flip(1))
    )
    found = ldlq.round_weight(weight, Statistics(hessian), NO_GREEDY, PER_ROW, fit).codes
    assert torch.equal(found, flipped.codes.flip(1))


def test_ldlq_with_a_diagonal_hessian_is_rounding_to_nearest() -> None:
    weight, _ = _problem()
    hessian = torch.diag(torch.rand(48, dtype=torch.float64) + 0.1)
    rounded = ldlq.round_weight(weight, Statistics(hessian), LdlqRound(greedy_passes=3), PER_ROW, _minmax())
    assert torch.equal(rounded.codes, nearest.round_weight(weight, Statistics(), NO_GREEDY, PER_ROW, _minmax()).codes)


def test_06_greedy_passes_never_raise_the_loss_and_end_at_a_fixed_point() -> None:
    weight, hessian = _problem()
    damped = damp(hessian, 0.01)

    def loss(passes: int) -> tuple[float, Tensor]:
        rounded = ldlq.round_weight(weight, Statistics(hessian), LdlqRound(greedy_passes=passes), PER_ROW, _minmax())
        return proxy_loss(weight - rounded.params.values(rounded.codes, torch.float64), damped), rounded.codes

    losses = [loss(passes)[0] for passes in range(6)]
    assert losses[1] < losses[0]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))
    assert torch.equal(loss(50)[1], loss(51)[1])


def test_groups_keep_their_own_grids_in_any_order() -> None:
    scheme = UniformScheme(bits=2, group_size=16, scale_dtype="float32")
    weight, hessian = _problem()
    rounded = ldlq.round_weight(weight, Statistics(hessian), LdlqRound(), scheme, _minmax(scheme))
    groups = rounded.params.values(rounded.codes, torch.float64).reshape(16, 3, 16)
    assert all(len(group.unique()) <= 4 for row in groups for group in row)
    assert torch.equal(rounded.params.nearest(groups.reshape(16, 48)), rounded.codes)


def test_22_an_indefinite_hessian_fails_or_is_rounded_to_nearest_and_degraded() -> None:
    weight, _ = _problem()
    hopeless = -torch.eye(48, dtype=torch.float64)
    with pytest.raises(IndefiniteHessianError):
        ldlq.round_weight(weight, Statistics(hopeless), LdlqRound(), PER_ROW, _minmax())
    degraded = ldlq.round_weight(weight, Statistics(hopeless), LdlqRound(on_failure="diagonal"), PER_ROW, _minmax())
    assert degraded.degraded is not None and "rounded to nearest" in degraded.degraded
    assert degraded.stage == "nearest"


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_evenly_spaced_from_end_to_end_and_never_zero(bits: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    params = rms.fit_grid(weight, RmsClip(constant=1.5), UniformScheme(bits=bits, scale_dtype="float32"))
    codes = torch.arange(2**bits, dtype=torch.uint8).expand(8, -1)
    levels = dequantize(codes, params, torch.float64)[0]
    end = 1.5 * float(weight.square().mean().sqrt())
    assert torch.allclose(levels, torch.linspace(-end, end, 2**bits, dtype=torch.float64), rtol=1e-6)
    assert (levels != 0).all()
    assert torch.equal(quantize(dequantize(codes, params, torch.float64), params), codes)


def test_the_whole_matrix_has_one_scale_and_groups_have_their_own() -> None:
    weight = (
        torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    )
    assert len(rms.fit_grid(weight, RmsClip(), UniformScheme(bits=2)).scale.unique()) == 1
    grouped = rms.fit_grid(weight, RmsClip(), UniformScheme(bits=2, group_size=16))
    expected = 2 * 2.4 / 3 * weight.reshape(4, 2, 16).square().mean(-1).sqrt()
    assert torch.allclose(grouped.scale, expected, rtol=1e-3)
