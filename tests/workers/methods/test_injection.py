"""Bad problems for every method that works on one linear: a documented outcome, never a silent substitute."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conf import register
from conf.schema import ColumnsKeep, LearnedClip, MethodConf, MinmaxClip, NoKeep, NoRotate, NoScale, NoTune, SchemeConf
from workers.methods.errors import IndefiniteHessianError, MethodError
from workers.methods.linear import QuantizedLinear, quantize_linear
from workers.methods.statistics import Statistics

FOLDER = Path(register.__file__).parent / "method"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in ("slots_schema", "none"))
SIZE = 32


@cache
def method_of(name: str) -> tuple[MethodConf, SchemeConf]:
    """The stages of a method whose scope is one linear."""
    with register.hydra_context():
        root = register.compose([f"method={name}", "scheme.bits=3"]).root
    method = replace(root.method, rotate=NoRotate(), scale=NoScale(), tune=NoTune())
    if isinstance(method.clip, LearnedClip):
        method = replace(method, clip=MinmaxClip())
    if isinstance(method.keep, ColumnsKeep):
        method = replace(method, keep=ColumnsKeep(extra_bits=1.0))
    if root.scheme.group_size:
        root.scheme.group_size = 16
    return method, root.scheme


ROUND_WITH_HESSIAN = [name for name in NAMES if hasattr(method_of(name)[0].round, "on_failure")]


def _weight() -> Tensor:
    return torch.randn(16, SIZE, generator=torch.Generator().manual_seed(0))


def _inputs(rank: int = 4 * SIZE) -> Tensor:
    return torch.randn(rank, SIZE, generator=torch.Generator().manual_seed(1))


def _statistics(inputs: Tensor) -> Statistics:
    hessian = inputs.mT @ inputs / len(inputs)
    return Statistics(hessian, cross_hessian=0.1 * hessian, inputs=inputs, num_tokens=len(inputs))


def _run(name: str, weight: Tensor, statistics: Statistics, **round_options: object) -> QuantizedLinear:
    method, scheme = method_of(name)
    method = replace(method, round=replace(method.round, **round_options))
    return quantize_linear(weight, statistics, method, scheme, seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_the_hessian_raises(name: str) -> None:
    statistics = _statistics(_inputs())
    assert statistics.hessian is not None
    statistics.hessian[3, 4] = float("nan")
    with pytest.raises(MethodError, match="the Hessian has NaN or Inf: an activation overflowed"):
        _run(name, _weight(), statistics)


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_the_weight_raises(name: str) -> None:
    weight = _weight()
    weight[0, 0] = float("inf")
    with pytest.raises(MethodError, match="the weight has NaN or Inf"):
        _run(name, weight, _statistics(_inputs()))


@pytest.mark.parametrize("name", ROUND_WITH_HESSIAN)
def test_22_a_hessian_of_zeros_raises(name: str) -> None:
    with pytest.raises(IndefiniteHessianError, match="the Hessian is zero, no calibration token reached this linear"):
        _run(name, _weight(), _statistics(torch.zeros(8, SIZE)))


@pytest.mark.parametrize("name", ROUND_WITH_HESSIAN)
def test_22_an_indefinite_hessian_raises_or_is_rounded_to_nearest_and_says_so(name: str) -> None:
    indefinite = replace(_statistics(_inputs()), hessian=torch.diag(torch.linspace(-50, 1, SIZE)))
    with pytest.raises(IndefiniteHessianError, match="not positive definite"):
        _run(name, _weight(), indefinite)
    if not isinstance(method_of(name)[0].keep, NoKeep):  # it has no choice without a Hessian either
        with pytest.raises(IndefiniteHessianError, match="not positive definite"):
            _run(name, _weight(), indefinite, on_failure="diagonal")
        return
    degraded = _run(name, _weight(), indefinite, on_failure="diagonal").outcome
    assert degraded.degraded is not None and degraded.degraded.startswith("rounded to nearest: ")
    assert degraded.applied.endswith("round=nearest")


@pytest.mark.parametrize("name", ROUND_WITH_HESSIAN)
def test_22_a_singular_hessian_is_damped_and_nothing_is_degraded(name: str) -> None:
    outcome = _run(name, _weight(), _statistics(_inputs(rank=2)))
    assert outcome.outcome.degraded is None
    assert torch.isfinite(outcome.dense).all()


def _dead_columns(weight: Tensor, inputs: Tensor) -> None:
    inputs[:, ::5] = 0


def _constant_rows(weight: Tensor, inputs: Tensor) -> None:
    weight[::3] = 0.25


def _rows_of_zeros(weight: Tensor, inputs: Tensor) -> None:
    weight[::3] = 0


def _one_outlier(weight: Tensor, inputs: Tensor) -> None:
    weight[2, 7] = 500.0


def _one_loud_channel(weight: Tensor, inputs: Tensor) -> None:
    inputs[:, 4] *= 1000


@pytest.mark.parametrize("spoil", [_dead_columns, _constant_rows, _rows_of_zeros, _one_outlier, _one_loud_channel])
@pytest.mark.parametrize("name", NAMES)
def test_unusual_problems_have_finite_results_and_no_fallback(
    name: str, spoil: Callable[[Tensor, Tensor], None]
) -> None:
    weight, inputs = _weight(), _inputs()
    spoil(weight, inputs)
    result = _run(name, weight, _statistics(inputs))
    dense = result.dense
    assert torch.isfinite(dense).all()
    assert result.outcome.degraded is None
    loss = result.outcome.relative_proxy_loss
    assert loss is not None and loss < 1.0  # better than a weight of zeros
