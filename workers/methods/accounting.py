"""What a quantized weight costs to store. Torch-free: the planner reads it."""

from conf.schema import (
    FloatScheme,
    IncohereConf,
    KroneckerIncohere,
    MethodConf,
    RmsClip,
    SchemeConf,
    UniformScheme,
)

SCALE_BITS = {"float16": 16, "float32": 32}


RESCALE_BITS, SEED_BITS = (
    16,
    64,
)  # of an incoherent basis: a vector over the inputs, and what its factors are drawn from


def bits_per_weight(method: MethodConf, scheme: SchemeConf, out_features: int, in_features: int) -> float:
    """Everything that is stored for a linear over its number of weights.

    b + (scale bits + b) / group for an asymmetric grid; a symmetric one stores no zero point, and QuIP's grid one scale
    for the matrix (or each group) alone. Raises ValueError for a scheme it has no rule for.
    """
    if isinstance(scheme, FloatScheme):
        return float(scheme.bits)
    if not isinstance(scheme, UniformScheme):
        raise ValueError(f"{type(scheme).__name__}: no rule for its bits per weight")
    num_weights = out_features * in_features
    num_grids = num_weights // (scheme.group_size or in_features)
    zero_point_bits = 0 if scheme.symmetric else scheme.bits
    if isinstance(method.clip, RmsClip):
        num_grids, zero_point_bits = num_grids if scheme.group_size else 1, 0
    grids = num_grids * (SCALE_BITS[scheme.scale_dtype] + zero_point_bits)
    return scheme.bits + (grids + _basis_bits(method.incohere, in_features)) / num_weights


def _basis_bits(incohere: IncohereConf, in_features: int) -> int:
    if isinstance(incohere, KroneckerIncohere):
        return SEED_BITS + (RESCALE_BITS * in_features if incohere.rescale else 0)
    return 0
