"""OWQ: the most sensitive input columns keep 16 bits, and take up the errors of all others (Lee et al. 2023)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conf.schema import ColumnsKeep, SchemeConf
from workers.methods.accounting import kept_columns
from workers.methods.errors import IndefiniteHessianError, MethodError
from workers.methods.factor import damp
from workers.methods.grid import FitGrid, Params
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


@dataclass(frozen=True)
class KeptColumns:
    """Grids of all columns but some, which are what they are. columns: [k], ascending. weight: [out, k] float16."""

    rest: Params
    columns: Tensor
    weight: Tensor

    def nearest(self, weight: Tensor) -> Tensor:
        """Codes of the columns that have some: [out, in] -> [out, in - k]."""
        return self.rest.nearest(weight[:, others(self.columns, weight.shape[1])])

    def values(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in - k] uint8 -> [out, in] of `dtype`."""
        size = codes.shape[1] + len(self.columns)
        whole = torch.empty(len(codes), size, dtype=dtype, device=codes.device)
        if codes.shape[1]:
            whole[:, others(self.columns, size)] = self.rest.values(codes, dtype)
        whole[:, self.columns] = self.weight.to(dtype)
        return whole


def others(columns: Tensor, size: int) -> Tensor:
    """The columns of 0..size - 1 that are not among these, ascending."""
    mask = torch.ones(size, dtype=torch.bool, device=columns.device)
    mask[columns] = False
    return mask.nonzero().flatten()


def round_rest(
    weight: Tensor,
    statistics: Statistics,
    keep: ColumnsKeep,
    scheme: SchemeConf,
    fit: FitGrid,
    rounding: Callable[[Tensor, Statistics, FitGrid], Rounded],
) -> Rounded:
    """Round all columns but the kept ones as a problem of its own, then give the kept ones their best values.

    With K kept and F rounded, the loss of an error E_F is smallest at E_K = -E_F H_FK H_KK^-1, and what is left of it
    is that of the Schur complement H_FF - H_FK H_KK^-1 H_KF: the Hessian F is rounded with. That is GPTQ with K last.
    Sensitivity of column j is H_jj sum_i (w_ij - rtn(w)_ij)^2, on the grid of all columns. weight: [out, in].
    """
    hessian = statistics.hessian
    if hessian is None:
        raise ValueError("OWQ needs a Hessian")
    count = kept_columns(keep, scheme, weight.shape[1])
    if count == 0:
        rounded = rounding(weight, statistics, fit)
        missing = f"no column of {weight.shape[1]} fits method.keep.extra_bits={keep.extra_bits:g}"
        return replace(rounded, degraded="; ".join(filter(None, (missing, rounded.degraded))))
    whole = fit(weight)
    if count == weight.shape[1]:
        columns = torch.arange(count, device=weight.device)
        empty = torch.empty(len(weight), 0, dtype=torch.uint8, device=weight.device)
        return Rounded(empty, KeptColumns(whole, columns, _stored(weight)), stage="none")
    error = weight - whole.values(whole.nearest(weight), weight.dtype)
    sensitivity = hessian.diagonal() * error.square().sum(0)
    kept = sensitivity.topk(count).indices.sort().values
    rest = others(kept, weight.shape[1])
    lower, info = torch.linalg.cholesky_ex(damp(hessian[kept][:, kept], keep.damping))
    if int(info):
        raise IndefiniteHessianError(f"Hessian of the {count} kept columns not positive definite; raise keep.damping")
    share = torch.cholesky_solve(hessian[kept][:, rest], lower)  # H_KK^-1 H_KF
    complement = hessian[rest][:, rest] - hessian[rest][:, kept] @ share
    complement.diagonal().clamp_(min=0)
    inputs = None if statistics.inputs is None else statistics.inputs[:, rest]
    rounded = rounding(weight[:, rest], replace(statistics, hessian=complement, inputs=inputs), fit)
    left = weight[:, rest] - rounded.params.values(rounded.codes, weight.dtype)
    return replace(rounded, params=KeptColumns(rounded.params, kept, _stored(weight[:, kept] + left @ share.mT)))


def _stored(columns: Tensor) -> Tensor:
    stored = columns.half()
    if not torch.isfinite(stored).all():
        raise MethodError(f"a kept column reaches {float(columns.abs().max()):.3g}, beyond float16's range")
    return stored
