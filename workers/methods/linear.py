"""One linear, from weights and statistics to codes: the stages whose scope is a single linear, in order."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from conf.schema import ClipConf, HadamardIncohere, IncohereConf, MethodConf, NoIncohere, NoKeep, RmsClip, SchemeConf
from kernels.precision import full_float32
from workers.methods.accounting import bits_per_weight
from workers.methods.clip import rms
from workers.methods.errors import MethodError
from workers.methods.grid import FitGrid, Params
from workers.methods.incohere.basis import Basis
from workers.methods.loss import proxy_loss
from workers.methods.refusals import refusals
from workers.methods.registry import missing_schemes, missing_stages, stage_module
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


@dataclass(frozen=True)
class Outcome:
    """What a linear really got.

    applied: the stages that ran, like `clip=minmax round=gptq`. damping: fraction of the mean live diagonal, in the
    basis of rounding, null where none was used. proxy_loss: tr((W-Q) H (W-Q)^T), relative_proxy_loss: over tr(W H W^T);
    null without a Hessian (and the latter where the denominator is zero). degraded: what differs from the label, or
    null.
    """

    applied: str
    bits_per_weight: float
    damping: float | None
    damping_retries: int
    degraded: str | None
    proxy_loss: float | None
    relative_proxy_loss: float | None


@dataclass(frozen=True)
class QuantizedLinear:
    """codes: [out, in], in the basis the linear was rounded in (null: its own); what params make of them.

    dense: the weight they stand for, in the linear's own basis, [out, in] of the dtype the linear came in.
    """

    codes: Tensor
    params: Params
    basis: Basis | None
    outcome: Outcome
    dense: Tensor


def restored(codes: Tensor, params: Params, basis: Basis | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that codes stand for, in the linear's own basis: [out, in] of `dtype`."""
    weight = params.values(codes, dtype)
    return weight if basis is None else basis.back(weight)


@full_float32()
def quantize_linear(
    weight: Tensor, statistics: Statistics, method: MethodConf, scheme: SchemeConf, seed: int = 0
) -> QuantizedLinear:
    """Quantize one weight matrix with the incohere, keep, clip and round stages of `method`.

    weight: [out, in] float32 (float64 computes in float64); not modified. statistics: not modified; methods that need
    no data need none, and without a Hessian no loss is reported. seed: of all that is drawn at random for this linear.
    Losses are those of the linear's own basis.
    Raises MethodError for NaN, Inf, an indefinite Hessian or a scale out of range, ValueError for settings or shapes
    that do not fit. The caller adds the layer's name.
    """
    _require_supported(method, scheme)
    _require_sound(weight, statistics)
    in_dtype = _map(statistics, lambda tensor: tensor.to(weight.dtype))
    basis = _basis(weight, in_dtype.hessian, method, seed)
    clip, rounded = _round(weight, in_dtype, basis, method, scheme)
    dense = restored(rounded.codes, rounded.params, basis, weight.dtype)
    loss, relative = _losses(weight, dense, statistics.hessian)
    outcome = Outcome(
        applied=_applied(method, clip, rounded),
        bits_per_weight=bits_per_weight(method, scheme, *weight.shape),
        damping=rounded.damping,
        damping_retries=rounded.damping_retries,
        degraded=_degraded(statistics, rounded),
        proxy_loss=loss,
        relative_proxy_loss=relative,
    )
    return QuantizedLinear(rounded.codes, rounded.params, basis, outcome, dense)


def _map(statistics: Statistics, change: Callable[[Tensor], Tensor]) -> Statistics:
    changed: dict[str, Any] = {k: change(v) for k, v in vars(statistics).items() if isinstance(v, Tensor)}
    return replace(statistics, **changed)


def _basis(weight: Tensor, hessian: Tensor | None, method: MethodConf, seed: int) -> Basis | None:
    if isinstance(method.incohere, NoIncohere):
        return None
    basis: Basis = _module(method.incohere).make_basis(weight, hessian, method.incohere, seed)
    return basis


def _round(
    weight: Tensor, statistics: Statistics, basis: Basis | None, method: MethodConf, scheme: SchemeConf
) -> tuple[ClipConf, Rounded]:
    """Clip and round in the basis; of several settings of the clip the one with the smallest loss wins."""
    if basis is not None:
        weight = basis.of_weight(weight)
        statistics = basis.of_statistics(statistics)
    clips = rms.variants(method.clip, scheme) if isinstance(method.clip, RmsClip) else [method.clip]
    tried = [(clip, _keep_and_round(weight, statistics, replace(method, clip=clip), scheme)) for clip in clips]
    if len(tried) == 1:
        return tried[0]
    hessian = statistics.hessian
    metric = torch.eye(weight.shape[1], dtype=weight.dtype) if hessian is None else hessian
    return min(tried, key=lambda pair: proxy_loss(weight - pair[1].params.values(pair[1].codes), metric))


def _keep_and_round(weight: Tensor, statistics: Statistics, method: MethodConf, scheme: SchemeConf) -> Rounded:
    def rounding(weight: Tensor, statistics: Statistics, fit: FitGrid) -> Rounded:
        rounded: Rounded = _module(method.round).round_weight(weight, statistics, method.round, scheme, fit)
        return rounded

    fit = _fit(method.clip, scheme, statistics)
    if isinstance(method.keep, NoKeep):
        return rounding(weight, statistics, fit)
    kept: Rounded = _module(method.keep).round_rest(weight, statistics, method.keep, scheme, fit, rounding)
    return kept


def _fit(clip: ClipConf, scheme: SchemeConf, statistics: Statistics) -> FitGrid:
    def fit(columns: Tensor) -> Params:
        params: Params = _module(clip).fit_grid(columns, clip, scheme, statistics)
        return params

    return fit


def _module(stage: Any) -> Any:
    return importlib.import_module(stage_module(stage))


def _applied(method: MethodConf, clip: ClipConf, rounded: Rounded) -> str:
    """The stages that ran; of a searched constant, what was found."""
    incohere = "" if isinstance(method.incohere, NoIncohere) else f"incohere={_basis_name(method.incohere)} "
    found = f"({clip.constant:.3g})" if isinstance(clip, RmsClip) else ""
    keep = "" if isinstance(method.keep, NoKeep) else f"keep={_name(method.keep)} "
    return f"{incohere}{keep}clip={_name(clip)}{found} round={rounded.stage}"


def _degraded(statistics: Statistics, rounded: Rounded) -> str | None:
    untrained = None if statistics.learned is None else statistics.learned.degraded
    return "; ".join(filter(None, (statistics.degraded, untrained, rounded.degraded))) or None


def _basis_name(incohere: IncohereConf) -> str:
    """A basis of the inputs alone is no part of a deployed weight: they have to be turned as the model runs."""
    inputs_alone = isinstance(incohere, HadamardIncohere) and incohere.sides == "input"
    return f"{_name(incohere)}(input, online)" if inputs_alone else _name(incohere)


def _name(stage: Any) -> str:
    return stage_module(stage).rpartition(".")[2]


def _require_supported(method: MethodConf, scheme: SchemeConf) -> None:
    problems = missing_stages(method) + missing_schemes(scheme) + refusals(method, scheme)
    if problems:
        raise ValueError("; ".join(problems))


def _require_sound(weight: Tensor, statistics: Statistics) -> None:
    if not _is_finite(weight):
        raise MethodError("the weight has NaN or Inf; check the checkpoint's files")
    for name, tensor in (("Hessian", statistics.hessian), ("cross-Hessian", statistics.cross_hessian)):
        if tensor is None:
            continue
        if tensor.shape != (weight.shape[1], weight.shape[1]):
            raise ValueError(f"{name} {list(tensor.shape)} does not fit weight [out, in] = {list(weight.shape)}")
        if not _is_finite(tensor):
            raise MethodError(f"the {name} has NaN or Inf: an activation overflowed; set numerics.dtype=float32")


def _is_finite(tensor: Tensor) -> bool:
    """The extremes hold NaN if anything does, and cost one pass without a mask of its size."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _losses(weight: Tensor, quantized: Tensor, hessian: Tensor | None) -> tuple[float | None, float | None]:
    if hessian is None:
        return None, None
    loss, full = proxy_loss(weight - quantized, hessian), proxy_loss(weight, hessian)
    return loss, loss / full if full else None
