"""QuIP's grid: as many levels as codes, evenly from -S to S, S a constant times the root mean square; and QuIP#'s."""

import dataclasses
from typing import overload

import torch
from torch import Tensor

from conf.schema import RmsClip, SchemeConf, VectorCodebookScheme
from workers.methods import codebook
from workers.methods.codebook import CodebookParams
from workers.methods.grid import SMALLEST_SCALE, GridScheme, QuantParams, scale_dtype, split_groups, storable
from workers.methods.statistics import Statistics

CONSTANT = 2.4


@overload
def fit_grid(
    weight: Tensor, clip: RmsClip, scheme: GridScheme, statistics: Statistics | None = None
) -> QuantParams: ...


@overload
def fit_grid(
    weight: Tensor, clip: RmsClip, scheme: VectorCodebookScheme, statistics: Statistics | None = None
) -> CodebookParams: ...


def fit_grid(
    weight: Tensor, clip: RmsClip, scheme: GridScheme | VectorCodebookScheme, statistics: Statistics | None = None
) -> QuantParams | CodebookParams:
    """Levels S (2 k / (2^bits - 1) - 1), so that zero lies between two of them (Chee et al. 2023, section C).

    S is `constant` times the RMS of the whole matrix, or with a group size of each group; of a codebook of vectors the
    unit is (Tseng et al. 2024). weight: [out, in]. Raises MethodError when a scale cannot be stored.
    """
    constant = _constant(clip, scheme)
    if isinstance(scheme, VectorCodebookScheme):
        return codebook.fit_codebook(weight, constant, scheme.bits)
    groups = split_groups(weight, scheme.group_size)
    if scheme.group_size is None:
        rms = weight.square().mean(dtype=torch.float64).sqrt().expand(groups.shape[:2])
    else:
        rms = groups.square().mean(-1, dtype=torch.float64).sqrt()
    steps = 2**scheme.bits - 1
    step = (2 * constant / steps * rms).clamp(min=SMALLEST_SCALE)
    scale = step.to(scale_dtype(scheme)).float()
    zero_point = torch.full_like(scale, steps / 2)
    return storable(QuantParams(scale, zero_point, scheme.bits, scheme.group_size), scheme)


def variants(clip: RmsClip, scheme: SchemeConf) -> list[RmsClip]:
    """The constants to choose from by proxy loss, each as a setting of its own."""
    constants = clip.candidates or [_constant(clip, scheme)]
    return [dataclasses.replace(clip, constant=constant, candidates=[]) for constant in constants]


def _constant(clip: RmsClip, scheme: SchemeConf) -> float:
    if clip.constant is not None:
        return clip.constant
    return 1 / codebook.RMS[scheme.bits] if isinstance(scheme, VectorCodebookScheme) else CONSTANT
