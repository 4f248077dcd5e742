"""What is built, as one literal table keyed by config class. Torch-free: the planner reads it.

A recipe number says "these numbers": raise it when a stage's results change, and every cell that uses the stage gets a
new key. A class that is not in the table is not implemented.
"""

import enum
from dataclasses import dataclass
from typing import Any

from conf.schema import (
    AwqScale,
    BlockTune,
    ColumnsKeep,
    FloatScheme,
    GptaqRound,
    GptqRound,
    HadamardIncohere,
    HadamardRotate,
    HqqRound,
    KroneckerIncohere,
    LdlqRound,
    LearnedClip,
    LearnedScale,
    MaskKeep,
    MethodConf,
    MinmaxClip,
    MixedScheme,
    MseClip,
    NearestRound,
    NoIncohere,
    NoKeep,
    NoRotate,
    NoRound,
    NoScale,
    NoTune,
    NumericsConf,
    RandomRotate,
    RealZeroScheme,
    RmsClip,
    SchemeConf,
    SearchClip,
    SmoothScale,
    UniformScheme,
    VectorCodebookScheme,
)


class Need(enum.Enum):
    """What the pipeline must collect before a stage can run."""

    HESSIAN = "Hessian"
    CROSS_HESSIAN = "cross-Hessian"
    FULL_PRECISION_STREAM = "full-precision stream"
    MEAN_ABS_INPUT = "mean |x|"
    INPUTS = "inputs"


@dataclass(frozen=True)
class Stage:
    """Where a stage lives. module null: there is nothing to do."""

    module: str | None
    recipe: int
    needs: frozenset[Need] = frozenset()


_NOTHING = Stage(None, recipe=0)

STAGES: dict[type[Any], Stage] = {
    NoRotate: _NOTHING,
    HadamardRotate: Stage("workers.methods.rotate.hadamard", recipe=1),
    RandomRotate: Stage("workers.methods.rotate.random", recipe=1),
    NoScale: _NOTHING,
    AwqScale: Stage("workers.methods.scale.awq", recipe=1, needs=frozenset({Need.MEAN_ABS_INPUT, Need.HESSIAN})),
    SmoothScale: Stage("workers.methods.scale.smooth", recipe=1, needs=frozenset({Need.MEAN_ABS_INPUT})),
    LearnedScale: Stage("workers.methods.scale.learned", recipe=1, needs=frozenset({Need.MEAN_ABS_INPUT})),
    NoIncohere: _NOTHING,
    KroneckerIncohere: Stage("workers.methods.incohere.kronecker", recipe=1, needs=frozenset({Need.HESSIAN})),
    HadamardIncohere: Stage("workers.methods.incohere.hadamard", recipe=1, needs=frozenset({Need.HESSIAN})),
    NoKeep: _NOTHING,
    ColumnsKeep: Stage("workers.methods.keep.columns", recipe=1, needs=frozenset({Need.HESSIAN})),
    MaskKeep: Stage("workers.methods.keep.mask", recipe=1, needs=frozenset({Need.HESSIAN})),
    SearchClip: Stage("workers.methods.clip.search", recipe=3, needs=frozenset({Need.HESSIAN, Need.INPUTS})),
    MinmaxClip: Stage("workers.methods.clip.minmax", recipe=1),
    MseClip: Stage("workers.methods.clip.mse", recipe=1),
    RmsClip: Stage("workers.methods.clip.rms", recipe=1),
    LearnedClip: Stage("workers.methods.clip.learned", recipe=1),
    NoTune: _NOTHING,
    BlockTune: Stage("workers.methods.tune.block", recipe=1, needs=frozenset({Need.FULL_PRECISION_STREAM})),
    NoRound: _NOTHING,
    NearestRound: Stage("workers.methods.round.nearest", recipe=1),
    GptqRound: Stage("workers.methods.round.gptq", recipe=2, needs=frozenset({Need.HESSIAN})),
    LdlqRound: Stage("workers.methods.round.ldlq", recipe=1, needs=frozenset({Need.HESSIAN})),
    GptaqRound: Stage("workers.methods.round.gptaq", recipe=1, needs=frozenset({Need.HESSIAN, Need.CROSS_HESSIAN})),
    HqqRound: Stage("workers.methods.round.hqq", recipe=1),
}

SCHEMES: frozenset[type[SchemeConf]] = frozenset(
    {FloatScheme, UniformScheme, RealZeroScheme, MixedScheme, VectorCodebookScheme}
)

PIPELINE_RECIPE = 1  # raise when the block loop itself leads to other numbers
STATISTICS_RECIPE = 1  # and when what calibration says of a block does: its hooks, its sums, kernels/hessian

SLOTS = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")  # ordered by scope, as in MethodConf


def missing_stages(method: MethodConf) -> list[str]:
    """The stages of a method that are not implemented, as text naming slot and class."""
    stages = {slot: type(getattr(method, slot)) for slot in SLOTS}
    return [f"slot {slot}: {cls.__name__} is not implemented" for slot, cls in stages.items() if cls not in STAGES]


def missing_schemes(scheme: SchemeConf) -> list[str]:
    """The scheme's class as text when it is not implemented."""
    return [] if type(scheme) in SCHEMES else [f"scheme: {type(scheme).__name__} is not implemented"]


def is_baseline(method: MethodConf) -> bool:
    """Whether nothing is rounded: the 16-bit baseline."""
    return isinstance(method.round, NoRound)


def needs(method: MethodConf) -> frozenset[Need]:
    """The union of what the method's stages need; of a stage that is not implemented nothing is known."""
    return frozenset().union(*(STAGES[cls].needs for cls in _used(method) if cls in STAGES))


def follows_original(method: MethodConf) -> bool:
    """Whether the calibration runs through the original blocks too."""
    full = {Need.CROSS_HESSIAN, Need.FULL_PRECISION_STREAM}
    return bool(needs(method)) and (method.inputs == "original" or bool(needs(method) & full))


def follows_quantized(method: MethodConf) -> bool:
    """Whether the calibration runs through the blocks as they are after quantization."""
    return bool(needs(method)) and method.inputs == "quantized"


def shares_statistics(method: MethodConf, numerics: NumericsConf, block: int) -> bool:
    """Whether what calibration says of a block is kept in the storage for other cells.

    They must find the same there: no block before it is quantized, and nothing is compared with a second stream. Only
    what the CPU computes is kept. A GPU makes a Hessian of 128 x 2048 tokens about as fast as storages are read.
    """
    collected = needs(method) - {Need.FULL_PRECISION_STREAM}
    same = bool(collected) and Need.CROSS_HESSIAN not in collected and (block == 0 or not follows_quantized(method))
    return same and numerics.device == "cpu"


def recipes(method: MethodConf) -> dict[str, int]:
    """Class name -> recipe number of every stage that does something; part of the cell's key.

    A stage that is not implemented counts as recipe 0, so that such a cell has a key of its own too.
    """
    numbers = {cls.__name__: STAGES[cls].recipe if cls in STAGES else 0 for cls in _used(method)}
    return {name: numbers[name] for name in sorted(numbers)}


def stage_module(stage: Any) -> str:
    """The module that carries a stage out. Raises ValueError for one that is not implemented or has nothing to do."""
    found = STAGES.get(type(stage))
    if found is None or found.module is None:
        raise ValueError(f"{type(stage).__name__} has no module in workers.methods.registry.STAGES")
    return found.module


def _used(method: MethodConf) -> list[type[Any]]:
    slots = [slot for slot in SLOTS if not (slot == "clip" and is_baseline(method))]  # no rounding, no grid
    classes = [type(getattr(method, slot)) for slot in slots]
    return [cls for cls in classes if STAGES.get(cls) is not _NOTHING]
