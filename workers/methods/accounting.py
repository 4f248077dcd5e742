"""What a quantized weight costs to store. Torch-free: the planner reads it."""

from conf.schema import (
    ColumnsKeep,
    FloatScheme,
    HadamardIncohere,
    IncohereConf,
    KeepConf,
    KroneckerIncohere,
    MaskKeep,
    MethodConf,
    MixedScheme,
    NoKeep,
    RealZeroScheme,
    RmsClip,
    SchemeConf,
    UniformScheme,
    VectorCodebookScheme,
)

SCALE_BITS = {"float16": 16, "float32": 32}
FLOAT_BITS, INDEX_BITS = 16, 16  # of a weight that is kept, a scale, a real zero point; of a column's number
VECTOR_SIZE = 8  # neighbouring weights that a codebook of vectors codes together
RESCALE_BITS, SEED_BITS = 16, 64  # of an incoherent basis: one for each input, and what its factors are drawn from


def bits_per_weight(method: MethodConf, scheme: SchemeConf, out_features: int, in_features: int) -> float:
    """`stored_bits` over the number of weights."""
    return stored_bits(method, scheme, out_features, in_features) / (out_features * in_features)


def stored_bits(method: MethodConf, scheme: SchemeConf, out_features: int, in_features: int) -> int:
    """Everything that is stored for a linear.

    A weight takes b + (scale bits + b) / group on an asymmetric grid; a symmetric one stores no zero point, and QuIP's
    grid one scale for the matrix (or each group) alone. Raises ValueError for a scheme it has no rule for.
    """
    num_weights = out_features * in_features
    if isinstance(scheme, FloatScheme):
        return scheme.bits * num_weights
    basis = _basis_bits(method.incohere, in_features)
    if isinstance(scheme, MixedScheme):
        assert isinstance(method.keep, MaskKeep)
        return _mask_bits(method.keep, scheme, out_features, num_weights) + basis
    if isinstance(scheme, VectorCodebookScheme):
        return scheme.bits * num_weights + FLOAT_BITS + basis
    kept = kept_columns(method.keep, scheme, in_features)
    codes = scheme.bits * out_features * (in_features - kept)
    grids = _grid_bits(method, scheme, out_features, in_features - kept)
    columns = kept * (FLOAT_BITS * out_features + INDEX_BITS)
    return codes + grids + columns + basis


def _grid_bits(method: MethodConf, scheme: SchemeConf, out_features: int, in_features: int) -> int:
    num_grids = out_features * (in_features // (scheme.group_size or in_features)) if in_features else 0
    if isinstance(scheme, RealZeroScheme):
        return num_grids * 2 * FLOAT_BITS
    if not isinstance(scheme, UniformScheme):
        raise ValueError(f"{type(scheme).__name__}: no rule for its bits per weight")
    zero_point_bits = 0 if scheme.symmetric else scheme.bits
    if isinstance(method.clip, RmsClip):
        num_grids, zero_point_bits = num_grids if scheme.group_size else 1, 0
    return num_grids * (SCALE_BITS[scheme.scale_dtype] + zero_point_bits)


def _mask_bits(keep: MaskKeep, scheme: MixedScheme, out_features: int, num_weights: int) -> int:
    """The mask itself, one bit or `keep.bits` for each entry, and two grids for each row."""
    num_salient = round(salient_fraction(keep, scheme) * num_weights)
    grids = out_features * (2 * FLOAT_BITS + FLOAT_BITS + keep.bits)
    return num_weights + (num_weights - num_salient) + keep.bits * num_salient + grids


def _basis_bits(incohere: IncohereConf, in_features: int) -> int:
    if isinstance(incohere, KroneckerIncohere | HadamardIncohere):
        return SEED_BITS + (RESCALE_BITS * in_features if incohere.rescale else 0)
    return 0


def salient_fraction(keep: MaskKeep, scheme: SchemeConf) -> float:
    """The share of entries at `keep.bits`; the one at which the mean is the scheme's bits unless it is given."""
    return (scheme.bits - 1) / (keep.bits - 1) if keep.fraction is None else keep.fraction


def kept_columns(keep: KeepConf, scheme: SchemeConf, in_features: int) -> int:
    """How many columns stay in 16 bits: what `extra_bits` for each weight pay for, rounded to the nearest number."""
    if isinstance(keep, NoKeep | MaskKeep):
        return 0
    assert isinstance(keep, ColumnsKeep)
    return min(in_features, round(in_features * keep.extra_bits / (FLOAT_BITS - scheme.bits)))
