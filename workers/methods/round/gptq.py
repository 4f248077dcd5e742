"""GPTQ: each column takes up the rounding errors of the columns before it (Frantar et al. 2023, algorithm 1)."""

from dataclasses import replace

import torch
from torch import Tensor

from conf.schema import GptqRound, RoundConf, SchemeConf
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import Factor, factor_damped
from workers.methods.grid import ColumnParams, FitGrid, Params, QuantParams, dequantize
from workers.methods.round import nearest
from workers.methods.round.columns import round_in_order
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def round_weight(weight: Tensor, statistics: Statistics, conf: GptqRound, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes that keep x W^T for the calibration inputs, not the weights themselves.

    weight: [out, in] float32 or float64, the dtype of the computation. Of the statistics the Hessian; its scale does
    not matter. Columns whose diagonal entry is zero were never active and become zero.
    Grids are fitted once, or, with static_groups off, group after group on the weights compensated so far.
    Raises IndefiniteHessianError unless conf.on_failure is `diagonal`: then the weight is rounded to nearest, degraded.
    """
    hessian = statistics.hessian
    if hessian is None:
        raise ValueError("GPTQ needs a Hessian")
    order = column_order(hessian, act_order=conf.act_order)
    try:
        factor = factor_damped(hessian.index_select(0, order).index_select(1, order), conf.damping)
    except IndefiniteHessianError as error:
        if conf.on_failure != "diagonal":
            raise
        return nearest_instead(weight, statistics, conf, scheme, fit, error)
    alive = weight.masked_fill(hessian.diagonal() == 0, 0)
    params: Params
    if conf.static_groups or scheme.group_size is None:
        params = fit(alive)
        assert isinstance(params, ColumnParams)
        codes = round_in_order(alive, order, factor.feedback, params, conf.block_size)
    else:
        codes, params = _dynamic_groups(alive, factor, fit, scheme.group_size, conf.block_size)
    raised = f"damping {factor.damping:g} instead of {conf.damping:g}" if factor.retries else None
    return Rounded(codes, params, "gptq", factor.damping, factor.retries, raised)


def column_order(hessian: Tensor, *, act_order: bool) -> Tensor:
    """[in]: by descending diagonal, equals as they stand, or all as they stand."""
    diagonal = hessian.diagonal()
    if act_order:
        return torch.argsort(diagonal, descending=True, stable=True)
    return torch.arange(len(diagonal), device=hessian.device)


def nearest_instead(
    weight: Tensor, statistics: Statistics, conf: RoundConf, scheme: SchemeConf, fit: FitGrid, error: Exception
) -> Rounded:
    """What `on_failure: diagonal` asks for: with a diagonal Hessian the column loop rounds to nearest."""
    rounded = nearest.round_weight(weight, statistics, conf, scheme, fit)
    return replace(rounded, degraded=f"rounded to nearest: {error}")


def _dynamic_groups(
    weight: Tensor, factor: Factor, fit: FitGrid, group_size: int, block_size: int
) -> tuple[Tensor, QuantParams]:
    """Group after group: compensate it for all columns before it, fit its grid, round it as a problem of its own.

    With A = [[A_bb, A_bg], [0, A_gg]] for the columns before (b) and of the group (g), the best the group can do about
    the errors E_b is W_g + E_b A_bg A_gg^-1, and rounding that with A_gg alone continues the column loop exactly.
    """
    error = torch.empty_like(weight)
    codes, grids = [], []
    in_order = torch.arange(group_size, device=weight.device)
    for start in range(0, weight.shape[1], group_size):
        group = slice(start, start + group_size)
        own = factor.feedback[group, group]
        carried = error[:, :start] @ factor.feedback[:start, group]
        compensated = weight[:, group] + torch.linalg.solve_triangular(
            own, carried, upper=True, left=False, unitriangular=True
        )
        grid = fit(compensated)
        assert isinstance(grid, QuantParams)
        codes.append(round_in_order(compensated, in_order, own, grid, block_size))
        grids.append(grid)
        error[:, group] = weight[:, group] - dequantize(codes[-1], grid, weight.dtype)
    scale = torch.cat([grid.scale for grid in grids], dim=1)
    zero_point = torch.cat([grid.zero_point for grid in grids], dim=1)
    return torch.cat(codes, dim=1), QuantParams(scale, zero_point, grids[0].bits, group_size)
