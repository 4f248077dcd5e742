"""One linear from end to end: what is reported, and what happens when something is wrong."""

import pytest
import torch
from torch import Tensor

from conf.schema import (
    ClipConf,
    FloatScheme,
    GptqRound,
    MethodConf,
    MinmaxClip,
    MseClip,
    NearestRound,
    RoundConf,
    SchemeConf,
    UniformScheme,
)
from workers.methods.errors import MethodError
from workers.methods.linear import quantize_linear
from workers.methods.statistics import Statistics

SCHEME = UniformScheme(bits=3)
NAN, INF = float("nan"), float("inf")


def _method(stage: RoundConf, clip: ClipConf | None = None) -> MethodConf:
    return MethodConf(name="m", category="compensation", clip=clip or MinmaxClip(), round=stage)


def _problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    return torch.randn(16, 32, generator=generator), inputs.mT @ inputs / 200


def test_outcome_reports_stages_damping_and_both_losses() -> None:
    weight, hessian = _problem()

    quantized = quantize_linear(weight, Statistics(hessian), _method(GptqRound(damping=0.02), MseClip()), SCHEME)

    error = weight.double() - quantized.dense.double()
    loss = float((error @ hessian.double() @ error.mT).trace())
    full = float((weight.double() @ hessian.double() @ weight.double().mT).trace())
    outcome = quantized.outcome
    assert outcome.applied == "clip=mse round=gptq"
    assert (outcome.damping, outcome.damping_retries, outcome.degraded) == (0.02, 0, None)
    assert outcome.bits_per_weight == 3 + (16 + 3) / 32
    assert outcome.proxy_loss == pytest.approx(loss, rel=1e-6)  # products in float32
    assert outcome.relative_proxy_loss == pytest.approx(loss / full, rel=1e-6)


def test_rtn_without_hessian_reports_no_loss() -> None:
    outcome = quantize_linear(_problem()[0], Statistics(), _method(NearestRound()), SCHEME).outcome

    assert outcome.applied == "clip=minmax round=nearest"
    assert (outcome.damping, outcome.proxy_loss, outcome.relative_proxy_loss) == (None, None, None)


def test_rtn_with_hessian_has_the_same_codes_and_a_loss() -> None:
    weight, hessian = _problem()

    with_data = quantize_linear(weight, Statistics(hessian), _method(NearestRound()), SCHEME)

    assert torch.equal(with_data.codes, quantize_linear(weight, Statistics(), _method(NearestRound()), SCHEME).codes)
    assert with_data.outcome.proxy_loss is not None


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("on_failure", ["fail", "diagonal"])
def test_22_nan_and_inf_are_never_worked_around(bad: float, on_failure: str) -> None:
    weight, hessian = _problem()
    broken_weight, broken_hessian = weight.clone(), hessian.clone()
    broken_weight[3, 5] = bad
    broken_hessian[3, 5] = bad
    method = _method(GptqRound(on_failure=on_failure))

    with pytest.raises(MethodError, match="weight has NaN or Inf"):
        quantize_linear(broken_weight, Statistics(hessian), method, SCHEME)
    with pytest.raises(MethodError, match="Hessian has NaN or Inf"):
        quantize_linear(weight, Statistics(broken_hessian), method, SCHEME)


@pytest.mark.parametrize("hessian", [torch.zeros(32, 32), -torch.eye(32)], ids=["zero", "negative"])
def test_22_hopeless_hessian_fails_by_default(hessian: Tensor) -> None:
    with pytest.raises(MethodError):
        quantize_linear(_problem()[0], Statistics(hessian), _method(GptqRound()), SCHEME)


@pytest.mark.parametrize("hessian", [torch.zeros(32, 32), -torch.eye(32)], ids=["zero", "negative"])
def test_22_hopeless_hessian_with_on_failure_diagonal_is_rtn_and_degraded(hessian: Tensor) -> None:
    weight = _problem()[0]

    quantized = quantize_linear(weight, Statistics(hessian), _method(GptqRound(on_failure="diagonal")), SCHEME)

    assert torch.equal(quantized.codes, quantize_linear(weight, Statistics(), _method(NearestRound()), SCHEME).codes)
    assert quantized.outcome.applied == "clip=minmax round=nearest"
    assert quantized.outcome.degraded is not None
    assert quantized.outcome.degraded.startswith("rounded to nearest: ")
    assert quantized.outcome.damping is None


def test_22_singular_hessian_is_handled_by_the_configured_damping() -> None:
    weight = _problem()[0]

    outcome = quantize_linear(weight, Statistics(torch.ones(32, 32)), _method(GptqRound()), SCHEME).outcome

    assert (outcome.damping, outcome.damping_retries, outcome.degraded) == (0.01, 0, None)


def test_22_raised_damping_is_degraded() -> None:
    weight, hessian = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    hessian[0, 0] = -0.05

    outcome = quantize_linear(weight, Statistics(hessian), _method(GptqRound()), SCHEME).outcome

    assert (outcome.damping, outcome.damping_retries) == (0.1, 1)
    assert outcome.degraded == "damping 0.1 instead of 0.01"
    assert outcome.applied == "clip=minmax round=gptq"


def test_weight_of_zeros_stays_zero() -> None:
    quantized = quantize_linear(torch.zeros(4, 32), Statistics(_problem()[1]), _method(GptqRound()), SCHEME)

    assert torch.equal(quantized.dense, torch.zeros(4, 32))
    assert (quantized.outcome.proxy_loss, quantized.outcome.relative_proxy_loss) == (0.0, None)


def test_gptq_without_hessian_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a Hessian"):
        quantize_linear(_problem()[0], Statistics(), _method(GptqRound()), SCHEME)


def test_hessian_of_another_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[31, 31\] does not fit .*\[16, 32\]"):
        quantize_linear(_problem()[0], Statistics(torch.eye(31)), _method(GptqRound()), SCHEME)


@pytest.mark.parametrize(
    ("method", "scheme", "reason"),
    [
        (_method(GptqRound(static_groups=False)), UniformScheme(bits=4, group_size=8), "index per column"),
        (_method(GptqRound()), UniformScheme(bits=4, group_size=5), "does not divide 32"),
        (_method(GptqRound()), FloatScheme(), "needs integer codes"),
        (_method(RoundConf()), SCHEME, "RoundConf is not implemented"),
    ],
)
def test_settings_that_cannot_run_are_refused_with_the_reason(
    method: MethodConf, scheme: SchemeConf, reason: str
) -> None:
    weight, hessian = _problem()

    with pytest.raises(ValueError, match=reason):
        quantize_linear(weight, Statistics(hessian), method, scheme)


def test_scale_out_of_range_is_an_error_of_the_method() -> None:
    weight, hessian = _problem()

    with pytest.raises(MethodError, match=r"set scheme\.scale_dtype=float32"):
        quantize_linear(weight * 1e6, Statistics(hessian), _method(GptqRound()), SCHEME)
