"""What a quantized weight costs to store. Torch-free: the planner reads it."""

from conf.schema import FloatScheme, SchemeConf, UniformScheme

SCALE_BITS = {"float16": 16, "float32": 32}


def bits_per_weight(scheme: SchemeConf, in_features: int) -> float:
    """Codes, scales and zero points over the number of weights of a linear with `in_features` inputs.

    b + (scale bits + b) / group for an asymmetric grid; a symmetric one stores no zero point.
    Raises ValueError for a scheme it has no rule for.
    """
    if isinstance(scheme, FloatScheme):
        return float(scheme.bits)
    if isinstance(scheme, UniformScheme):
        zero_point_bits = 0 if scheme.symmetric else scheme.bits
        per_group = SCALE_BITS[scheme.scale_dtype] + zero_point_bits
        return scheme.bits + per_group / (scheme.group_size or in_features)
    raise ValueError(f"{type(scheme).__name__}: no rule for its bits per weight")
