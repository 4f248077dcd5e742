"""What quantizing one block holds beside its weights, by the options of a method's slots: pure counting of bytes.

The figures of a linear are copies of its weight and of its Hessian, float32, as measured at the peak of
`workers.methods.linear.quantize_linear`. `SLOT_COPIES` is keyed by the slot's dataclass: an option that is not in it
holds next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from conf.schema import (
    AwqScale,
    BlockTune,
    CalibrationConf,
    ColumnsKeep,
    GptaqRound,
    GptqRound,
    HadamardIncohere,
    HadamardRotate,
    HqqRound,
    KroneckerIncohere,
    LdlqRound,
    LearnedScale,
    MaskKeep,
    MethodConf,
    NearestRound,
    NoRotate,
    NumericsConf,
    RandomRotate,
    SearchClip,
    ShapeConf,
)
from orchestrator.shapes import DTYPE_BYTES, LinearShape, group_inputs
from workers.methods.registry import SLOTS, Need, follows_original, follows_quantized, is_baseline, needs

TURNED_AT_ONCE = 2**24  # numbers that a rotation holds in float64, four copies of them (workers.rotation.CHUNK)
AWQ_MODULES = 2  # modules whose inputs AWQ's search compares on: attention and MLP


@dataclass(frozen=True)
class Copies:
    """float32 copies of a linear in work.

    rounding: of its weight [out, in] while codes are chosen. held: of its weight, from beginning to end. squares: of
    its Hessian [in, in], until codes are chosen.
    """

    rounding: float = 0.0
    held: float = 0.0
    squares: float = 0.0


_BASIS = Copies(held=1.3, squares=2.3)  # weight and Hessian turned
SLOT_COPIES = {
    KroneckerIncohere: _BASIS,
    HadamardIncohere: _BASIS,
    ColumnsKeep: Copies(held=2.1, squares=1.4),  # the rounded columns, and the Schur complement of their Hessian
    MaskKeep: Copies(rounding=8.4),  # every entry has a grid of its own
    NearestRound: Copies(rounding=2.0),
    GptqRound: Copies(rounding=4.6),
    LdlqRound: Copies(rounding=6.5),
    GptaqRound: Copies(rounding=5.8, squares=1.0),
    HqqRound: Copies(rounding=7.2),
}
FACTORING = (1.5, 4.0)  # copies of the weight, of the Hessian: it is damped and factored
FEEDBACK = 1.5  # copies of the Hessian while codes are chosen: what is left of the factor
JUDGING, DEQUANTIZING = 8.5, 4.0  # copies of the weight, in float64, with a Hessian to judge by and without


def linear_bytes(method: MethodConf, linear: LinearShape) -> int:
    """The linear that is being rounded."""
    if is_baseline(method):
        return 0
    found = [SLOT_COPIES.get(type(getattr(method, slot)), Copies()) for slot in SLOTS]
    if isinstance(method.rotate, HadamardRotate) and method.rotate.intermediate:
        found.append(_BASIS)  # of the linears whose inputs no fold reaches, which are the widest
    rounding, held, squares = (
        sum(getattr(copies, part) for copies in found) for part in ("rounding", "held", "squares")
    )
    if Need.HESSIAN in needs(method):
        steps = [(FACTORING[0], FACTORING[1] + squares), (rounding, FEEDBACK + squares), (JUDGING, 0.0)]
    else:
        steps = [(rounding, 0.0), (DEQUANTIZING, 0.0)]
    weight, square = linear.out_features * linear.in_features, linear.in_features**2
    return int(4 * max((weights + held) * weight + hessians * square for weights, hessians in steps))


def collected_bytes(linears: Sequence[LinearShape], method: MethodConf) -> int:
    """What calibration says of a block: Hessians, cross-Hessians as large, and a sample of inputs and its whole.

    linears: as the calibration sees them. Of the tokens of an expert that sees a part of them, as many times more are
    taken as there are experts.
    """
    wanted, inputs = needs(method), group_inputs(linears)
    squares = sum(x.in_features**2 * x.count for x in inputs)
    sample = 0.0
    if Need.INPUTS in wanted and isinstance(method.clip, SearchClip):
        kept = sum(x.in_features * x.count * (1 if x.share == 1 else x.count * x.share) for x in inputs)
        sample = 2 * method.clip.num_tokens * kept
    return int(4 * (squares * ((Need.HESSIAN in wanted) + (Need.CROSS_HESSIAN in wanted)) + sample))


def recorded_bytes(linears: Sequence[LinearShape], method: MethodConf, num_tokens: int) -> int:
    """Inputs of the original model that wait for the quantized one's, float32, of one batch. linears: as above."""
    if Need.CROSS_HESSIAN not in needs(method):
        return 0
    return int(4 * num_tokens * sum(x.in_features * x.count * x.share for x in group_inputs(linears)))


def training_bytes(num_weights: int, method: MethodConf, numerics: NumericsConf) -> int:
    """float32, of a block's weights: rounded ones, two for the way back, a copy where the compute dtype is shorter.

    Offsets have a gradient and two snapshots beside them, and two moments under AdamW; scales move the weights.
    """
    tune = method.tune
    if not isinstance(tune, BlockTune):
        return 0
    copies = 3 + (DTYPE_BYTES[numerics.dtype] < 4)
    if "rounding" in tune.learns:
        copies += 6 if tune.optimizer == "adamw" else 4
    if isinstance(method.scale, LearnedScale):
        copies += 2
    return 4 * copies * num_weights


def learned_bytes(num_weights: int, method: MethodConf) -> int:
    """Offsets of a block's weights, float32, from their training until the last linear is rounded."""
    tune = method.tune
    return 4 * num_weights if isinstance(tune, BlockTune) and "rounding" in tune.learns else 0


def rotation_bytes(shape: ShapeConf, method: MethodConf, numerics: NumericsConf) -> int:
    """A part of a matrix in float64, the whole as it becomes, and of a random rotation its own matrix."""
    if isinstance(method.rotate, NoRotate):
        return 0
    matrix = shape.hidden_size**2 if isinstance(method.rotate, RandomRotate) else 0
    largest = shape.vocab_size * shape.hidden_size
    return 8 * (4 * min(TURNED_AT_ONCE, largest) + matrix) + largest * DTYPE_BYTES[numerics.dtype]


def num_streams(method: MethodConf) -> int:
    """How often the calibration is carried along: through the quantized blocks, through the original ones."""
    return follows_quantized(method) + follows_original(method)


def stream_bytes(shape: ShapeConf, calibration: CalibrationConf, numerics: NumericsConf) -> int:
    """Hidden states [num_sequences, sequence_length, hidden] in the compute dtype, between two blocks."""
    num_tokens = calibration.num_sequences * calibration.sequence_length
    return num_tokens * shape.hidden_size * DTYPE_BYTES[numerics.dtype]


def compared_bytes(shape: ShapeConf, method: MethodConf, calibration: CalibrationConf, numerics: NumericsConf) -> int:
    """Inputs of the modules that AWQ compares, of one block."""
    if not isinstance(method.scale, AwqScale):
        return 0
    windows = min(method.scale.num_windows, calibration.num_sequences)
    stream = stream_bytes(shape, calibration, numerics)
    return AWQ_MODULES * stream * windows // (calibration.num_sequences or 1)


def host_bytes(shape: ShapeConf, method: MethodConf, calibration: CalibrationConf, numerics: NumericsConf) -> int:
    """Each stream twice (a block's outputs beside its inputs; or its copy as it is written), and what slots keep.

    AWQ keeps the inputs and outputs of the modules it compares; a second loss the original block's outputs.
    """
    stream = stream_bytes(shape, calibration, numerics)
    held = 2 * num_streams(method) * stream
    held += 2 * compared_bytes(shape, method, calibration, numerics)
    if isinstance(method.tune, BlockTune) and method.tune.aug_loss:
        held += stream
    return held
