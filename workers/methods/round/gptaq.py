"""GPTAQ: GPTQ that also takes back what the blocks before have done to the inputs (Li et al. 2025, algorithm 1)."""

import torch
from torch import Tensor

from conf.schema import GptaqRound, SchemeConf
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import Factor, factor_damped
from workers.methods.grid import ColumnParams, FitGrid
from workers.methods.round.columns import round_in_order
from workers.methods.round.gptq import column_order, nearest_instead
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def round_weight(weight: Tensor, statistics: Statistics, conf: GptaqRound, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes whose outputs on the quantized model's inputs are those of the weights on the full-precision model's.

    weight: [out, in] float32 or float64. Of the statistics the Hessian and the cross-Hessian. Grids are fitted once.
    alpha: share of the inputs' change that is taken back. Equals GPTQ with alpha = 0 or a cross-Hessian of zeros.
    Raises IndefiniteHessianError unless conf.on_failure is `diagonal`: then the weight is rounded to nearest, degraded.
    """
    hessian, cross = statistics.hessian, statistics.cross_hessian
    if hessian is None or cross is None:
        raise ValueError("GPTAQ needs a Hessian and a cross-Hessian")
    order = column_order(hessian, act_order=conf.act_order)
    try:
        factor = factor_damped(hessian[order][:, order], conf.damping)
    except IndefiniteHessianError as error:
        if conf.on_failure != "diagonal":
            raise
        return nearest_instead(weight, statistics, conf, scheme, fit, error)
    dead = hessian.diagonal() == 0
    alive = weight.masked_fill(dead, 0)
    params = fit(alive)
    assert isinstance(params, ColumnParams)
    turned = cross.masked_fill(dead, 0)[order][:, order]
    codes = round_in_order(
        alive, order, factor.feedback, params, conf.block_size, drift=_drift(turned, factor, conf.alpha)
    )
    raised = f"damping {factor.damping:g} instead of {conf.damping:g}" if factor.retries else None
    return Rounded(codes, params, "gptaq", factor.damping, factor.retries, raised)


def _drift(cross: Tensor, factor: Factor, alpha: float) -> Tensor:
    """What each target passes on to the targets after it: alpha striu(G A^-T) D^-1, [in, in] strictly upper.

    The original subtracts e_i U_ik and adds t_i P_ik with P = alpha striu(G U^T) U, where H^-1 = U^T U. As U is
    D^-1/2 A^-1, summing what a target has received by the time it is rounded gives t = w + (w - q)(A - I) + t P A, and
    P A is the matrix here. The target t_i enters as it was before it was rounded, in every block of columns alike (the
    original takes the rounded one for the blocks that follow).
    """
    solved: Tensor = torch.linalg.solve_triangular(
        factor.feedback.mT, cross, upper=False, left=False, unitriangular=True
    )
    return solved.triu_(1).div_(factor.pivots).mul_(alpha)
