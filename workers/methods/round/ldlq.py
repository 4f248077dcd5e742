"""LDLQ, QuIP's rounding: GPTQ's recursion from the last column to the first, then greedy passes (Chee et al. 2023)."""

import torch
from torch import Tensor

from conf.schema import LdlqRound, SchemeConf
from kernels.coordinate_descent import improve_columns
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import damp, factor_damped
from workers.methods.grid import ColumnParams, FitGrid
from workers.methods.round.columns import round_in_order
from workers.methods.round.gptq import nearest_instead
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def round_weight(weight: Tensor, statistics: Statistics, conf: LdlqRound, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes that keep x W^T for the calibration inputs. Codes are clamped, targets never: clipping is fed back too.

    weight: [out, in] float32 or float64. Of the statistics the Hessian. Grids are fitted once.
    Raises IndefiniteHessianError unless conf.on_failure is `diagonal`: then the weight is rounded to nearest, degraded.
    """
    hessian = statistics.hessian
    if hessian is None:
        raise ValueError("LDLQ needs a Hessian")
    order = torch.arange(weight.shape[1] - 1, -1, -1, device=weight.device)
    try:
        factor = factor_damped(hessian.flip(0, 1), conf.damping)
    except IndefiniteHessianError as error:
        if conf.on_failure != "diagonal":
            raise
        return nearest_instead(weight, statistics, conf, scheme, fit, error)
    alive = weight.masked_fill(hessian.diagonal() == 0, 0)
    params = fit(alive)
    assert isinstance(params, ColumnParams)
    codes = round_in_order(alive, order, factor.feedback, params, conf.block_size)
    codes = _greedy(alive, codes, damp(hessian, factor.damping), params, conf)
    raised = f"damping {factor.damping:g} instead of {conf.damping:g}" if factor.retries else None
    return Rounded(codes, params, "ldlq", factor.damping, factor.retries, raised)


def _greedy(weight: Tensor, codes: Tensor, hessian: Tensor, params: ColumnParams, conf: LdlqRound) -> Tensor:
    """At most `greedy_passes` passes; none after one that changed nothing."""
    grid = params.for_loop(weight)
    for _ in range(conf.greedy_passes):
        improved = improve_columns(
            grid.weight,
            codes,
            hessian,
            grid.scale,
            grid.zero_point,
            grid.group_of_column,
            max_code=grid.max_code,
            block_size=conf.block_size,
        )
        if torch.equal(improved, codes):
            break
        codes = improved
    return codes
