"""One linear, from weights and statistics to codes: the stages whose scope is a single linear, in order."""

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import MethodConf, SchemeConf
from kernels.precision import full_float32
from workers.methods.accounting import bits_per_weight
from workers.methods.errors import MethodError
from workers.methods.grid import QuantParams, dequantize
from workers.methods.loss import proxy_loss
from workers.methods.refusals import refusals
from workers.methods.registry import missing_schemes, missing_stages, stage_module
from workers.methods.round.rounded import Rounded


@dataclass(frozen=True)
class Outcome:
    """What a linear really got.

    applied: the stages that ran, like `clip=minmax round=gptq`. damping: fraction of the mean live diagonal, null where
    none was used. proxy_loss: tr((W-Q) H (W-Q)^T), relative_proxy_loss: over tr(W H W^T); null without a Hessian (and
    the latter where the denominator is zero). degraded: what differs from the label, or null.
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
    """codes: [out, in] uint8, columns in the linear's own order."""

    codes: Tensor
    params: QuantParams
    outcome: Outcome

    def dequantize(self) -> Tensor:
        """The weight the codes stand for, in the linear's own basis: [out, in] float32."""
        return dequantize(self.codes, self.params)


@full_float32()
def quantize_linear(weight: Tensor, hessian: Tensor | None, method: MethodConf, scheme: SchemeConf) -> QuantizedLinear:
    """Quantize one weight matrix with the clip and round stages of `method`.

    weight: [out, in] float32 (float64 computes in float64); not modified. hessian: [in, in], mean over tokens of x x^T,
    undamped; not modified; null is enough for methods that need no data, and then no loss is reported.
    Raises MethodError for NaN, Inf, an indefinite Hessian or a scale out of range, ValueError for settings or shapes
    that do not fit. The caller adds the layer's name.
    """
    _require_supported(method, scheme)
    _require_sound(weight, hessian)
    clip, rounding = (importlib.import_module(stage_module(stage)) for stage in (method.clip, method.round))

    def fit(columns: Tensor) -> QuantParams:
        params: QuantParams = clip.fit_grid(columns, method.clip, scheme)
        return params

    statistics = None if hessian is None else hessian.to(weight.dtype)
    rounded: Rounded = rounding.round_weight(weight, statistics, method.round, scheme, fit)
    loss, relative = _losses(weight, rounded, hessian)
    outcome = Outcome(
        applied=f"clip={clip.__name__.rpartition('.')[2]} round={rounded.stage}",
        bits_per_weight=bits_per_weight(scheme, weight.shape[1]),
        damping=rounded.damping,
        damping_retries=rounded.damping_retries,
        degraded=rounded.degraded,
        proxy_loss=loss,
        relative_proxy_loss=relative,
    )
    return QuantizedLinear(rounded.codes, rounded.params, outcome)


def _require_supported(method: MethodConf, scheme: SchemeConf) -> None:
    problems = missing_stages(method) + missing_schemes(scheme) + refusals(method, scheme)
    if problems:
        raise ValueError("; ".join(problems))


def _require_sound(weight: Tensor, hessian: Tensor | None) -> None:
    if not torch.isfinite(weight).all():
        raise MethodError("the weight has NaN or Inf; check the checkpoint's files")
    if hessian is None:
        return
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"Hessian {list(hessian.shape)} does not fit weight [out, in] = {list(weight.shape)}")
    if not torch.isfinite(hessian).all():
        raise MethodError("the Hessian has NaN or Inf: an activation overflowed; set numerics.dtype=float32")


def _losses(weight: Tensor, rounded: Rounded, hessian: Tensor | None) -> tuple[float | None, float | None]:
    if hessian is None:
        return None, None
    loss = proxy_loss(weight.double() - dequantize(rounded.codes, rounded.params, torch.float64), hessian)
    full = proxy_loss(weight, hessian)  # nothing cancels here
    return loss, loss / full if full else None
