"""LDLQ, QuIP's rounding: GPTQ's recursion from the last column to the first, then greedy passes (Chee et al. 2023)."""

from collections.abc import Callable

import torch
from torch import Tensor

from conf.schema import LdlqRound, SchemeConf
from kernels.coordinate_descent import improve_columns
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import damp, factor_damped
from workers.methods.grid import ColumnParams, FitGrid, Params, VectorParams
from workers.methods.round.columns import round_in_order
from workers.methods.round.gptq import nearest_instead
from workers.methods.round.rounded import Rounded
from workers.methods.round.vectors import feedback_of_vectors, improve_vectors, round_vectors
from workers.methods.statistics import Statistics

Improve = Callable[[Tensor, Tensor], Tensor]
"""Codes, and the Hessian -> codes with a loss that is no larger."""


def round_weight(weight: Tensor, statistics: Statistics, conf: LdlqRound, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes that keep x W^T for the calibration inputs. Codes are clamped, targets never: clipping is fed back too.

    weight: [out, in] float32 or float64. Of the statistics the Hessian. Grids are fitted once.
    Raises IndefiniteHessianError unless conf.on_failure is `diagonal`: then the weight is rounded to nearest, degraded.
    """
    hessian = statistics.hessian
    if hessian is None:
        raise ValueError("LDLQ needs a Hessian")
    try:
        factor = factor_damped(hessian.flip(0, 1), conf.damping)
    except IndefiniteHessianError as error:
        if conf.on_failure != "diagonal":
            raise
        return nearest_instead(weight, statistics, conf, scheme, fit, error)
    alive = weight.masked_fill(hessian.diagonal() == 0, 0)
    params = fit(alive)
    by = _by_vectors if isinstance(params, VectorParams) else _by_columns
    codes, improve = by(alive, factor.feedback, params, conf.block_size)
    if conf.greedy_passes:
        codes = _greedy(codes, improve, damp(hessian, factor.damping), conf.greedy_passes)
    raised = f"damping {factor.damping:g} instead of {conf.damping:g}" if factor.retries else None
    return Rounded(codes, params, "ldlq", factor.damping, factor.retries, raised)


def _by_columns(weight: Tensor, flipped: Tensor, params: Params, block_size: int) -> tuple[Tensor, Improve]:
    """Codes of the recursion, and a greedy pass. flipped: the factor of the Hessian with its columns reversed."""
    assert isinstance(params, ColumnParams)
    order = torch.arange(weight.shape[1] - 1, -1, -1, device=weight.device)
    codes = round_in_order(weight, order, flipped, params, block_size)
    grid = params.for_loop(weight)

    def improve(codes: Tensor, hessian: Tensor) -> Tensor:
        return improve_columns(
            grid.weight,
            codes,
            hessian,
            grid.scale,
            grid.zero_point,
            grid.group_of_column,
            max_code=grid.max_code,
            block_size=block_size,
        )

    return codes, improve


def _by_vectors(weight: Tensor, flipped: Tensor, params: Params, block_size: int) -> tuple[Tensor, Improve]:
    """The same with the columns of each vector at once."""
    assert isinstance(params, VectorParams)
    size = params.vector_size
    codes = round_vectors(weight, feedback_of_vectors(flipped.flip(0, 1), size), params, size, block_size)

    def improve(codes: Tensor, hessian: Tensor) -> Tensor:
        return improve_vectors(weight, codes, hessian, params, size, block_size)

    return codes, improve


def _greedy(codes: Tensor, improve: Improve, hessian: Tensor, passes: int) -> Tensor:
    """At most so many passes; none after one that changed nothing."""
    for _ in range(passes):
        improved = improve(codes, hessian)
        if torch.equal(improved, codes):
            break
        codes = improved
    return codes
