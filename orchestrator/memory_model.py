"""Bytes from sizes and formats alone: weights, checkpoints, and what each stage holds at its peak.

Pure, no torch. Weights are exact; what a stage holds is an upper estimate for its placement, not a measurement.
"""

import math
from dataclasses import dataclass

from conf.errors import ConfigError
from conf.schema import (
    AwqScale,
    BlockTune,
    CalibrationConf,
    ColumnsKeep,
    FloatScheme,
    GptaqRound,
    GptqRound,
    HadamardIncohere,
    KroneckerIncohere,
    LdlqRound,
    LearnedScale,
    MaskKeep,
    MethodConf,
    MixedScheme,
    NoRound,
    NumericsConf,
    RealZeroScheme,
    RmsClip,
    SchemeConf,
    SearchClip,
    ShapeConf,
    SmoothScale,
    SuiteConf,
    UniformScheme,
    VectorCodebookScheme,
)
from orchestrator.shapes import (
    LinearShape,
    block_kinds,
    block_linears,
    block_rest,
    group_inputs,
    head_dim,
    num_key_value_heads,
    parameters,
    required_size,
)

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHUNK_TOKENS = 2048  # tokens the engine scores at once (its max_num_batched_tokens)
NUM_WINDOWS = 2  # windows whose keys and values must fit: one in work, one waiting
TASK_CONTEXT = 2048  # tokens of a benchmark task's longest request
BATCH_TOKENS = 2048  # tokens of one calibration batch


# --- weights ---------------------------------------------------------------------------------------------------------


def bits_per_weight(scheme: SchemeConf, in_features: int) -> float:
    """Stored bits per weight of a linear with in_features inputs: codes plus scale and zero point of each group.

    Uniform: b + (scale bits + b) / g, the zero point in b bits (none when symmetric). group_size null: g = in_features.
    What a method keeps at more bits (slot keep) and QuIP's rescale vector are not counted.
    """
    group = scheme.group_size or in_features
    match scheme:
        case UniformScheme():
            scale = 8 * DTYPE_BYTES[scheme.scale_dtype]
            return scheme.bits + (scale + (0 if scheme.symmetric else scheme.bits)) / group
        case RealZeroScheme():
            return scheme.bits + 32 / group
        case MixedScheme():
            return scheme.bits + 1 + 56 / group  # the average, the mask, a grid for one bit and one for eight
        case FloatScheme() | VectorCodebookScheme():
            return float(scheme.bits)
    raise ConfigError(f"{type(scheme).__name__}: the memory model has no bits per weight for this scheme")


def quantized_bytes(architecture: str, shape: ShapeConf, scheme: SchemeConf, weight_format: str, dtype: str) -> int:
    """Bytes of all block linears. weight_format: source or dense (numbers of `dtype`), or packed."""
    if weight_format != "packed" or isinstance(scheme, FloatScheme):
        return parameters(architecture, shape).quantized * DTYPE_BYTES[dtype]
    bits = sum(
        count * linear.num_weights * bits_per_weight(scheme, linear.in_features)
        for index, count in block_kinds(architecture, shape)
        for linear in block_linears(architecture, shape, index)
    )
    return math.ceil(bits / 8)


@dataclass(frozen=True)
class Disk:
    """Bytes on the storage: `kept` while the cell is, `temporary` at most beside it while the cell runs."""

    kept: int
    temporary: int


def checkpoint_bytes(architecture: str, shape: ShapeConf, scheme: SchemeConf, weight_format: str) -> int:
    """Bytes of a whole checkpoint: block linears in weight_format, everything else in the model's own dtype."""
    counts = parameters(architecture, shape)
    linears = quantized_bytes(architecture, shape, scheme, weight_format, shape.torch_dtype)
    return linears + (counts.total - counts.quantized) * DTYPE_BYTES[shape.torch_dtype]


def disk(
    architecture: str, shape: ShapeConf, scheme: SchemeConf, weight_format: str, calibration: CalibrationConf
) -> Disk:
    """What one cell adds to the storage. The 16-bit baseline points at the model's own files and keeps nothing.

    Temporary: the stream a killed worker resumes from while quantizing, then a dense copy where the engine needs one.
    """
    if isinstance(scheme, FloatScheme):
        return Disk(0, 0)
    stream = calibration.num_sequences * calibration.sequence_length * shape.hidden_size * 4
    dense = checkpoint_bytes(architecture, shape, scheme, "dense") if weight_format == "dense" else 0
    return Disk(checkpoint_bytes(architecture, shape, scheme, "packed"), max(stream, dense))


# --- quantize --------------------------------------------------------------------------------------------------------


def needs_hessian(method: MethodConf) -> bool:
    """Whether some slot reads H = X^T X."""
    return (
        isinstance(method.round, GptqRound | LdlqRound | GptaqRound)
        or isinstance(method.incohere, KroneckerIncohere | HadamardIncohere)
        or isinstance(method.keep, ColumnsKeep)
        or (isinstance(method.keep, MaskKeep) and method.keep.saliency == "hessian")
        or (isinstance(method.clip, RmsClip) and bool(method.clip.candidates))
    )


def needs_reference_stream(method: MethodConf) -> bool:
    """Whether some slot compares with the full-precision model, so that a second stream of activations is carried."""
    return isinstance(method.tune, BlockTune) or isinstance(method.round, GptaqRound)


def needs_data(method: MethodConf) -> bool:
    """Whether calibration tokens run through the model at all."""
    searches = isinstance(method.scale, AwqScale | SmoothScale | LearnedScale) or isinstance(method.clip, SearchClip)
    return searches or needs_hessian(method) or needs_reference_stream(method)


@dataclass(frozen=True)
class QuantizeMemory:
    """Bytes at the peak of the block loop.

    On the device: block (or, alone before and after the loop, a vocabulary matrix), hessians, solver (the linear being
    rounded), training (what slot tune adds), window (intermediate values of one batch). On the host: activations and
    read (a block as it lies in the file).
    """

    block: int
    hessians: int
    solver: int
    training: int
    window: int
    activations: int
    read: int

    @property
    def device_bytes(self) -> int:
        return self.block + self.hessians + self.solver + self.training + self.window

    @property
    def host_bytes(self) -> int:
        return self.activations + self.read


def quantize_memory(
    architecture: str, shape: ShapeConf, method: MethodConf, calibration: CalibrationConf, numerics: NumericsConf
) -> QuantizeMemory:
    """Peak of one block in work: its weights, the Hessians of all its inputs, one linear being solved, one batch.

    Activations: [num_sequences, sequence_length, hidden] float32, in and out, twice with a full-precision stream.
    """
    kinds = [index for index, _ in block_kinds(architecture, shape)]
    blocks = [block_linears(architecture, shape, index) for index in kinds]
    compute = DTYPE_BYTES[numerics.dtype]
    weights = max(sum(x.num_weights for x in block) for block in blocks)
    block_size = weights + max(block_rest(architecture, shape, index) for index in kinds)
    batch, width = 1, compute
    if isinstance(method.tune, BlockTune):
        batch, width = method.tune.batch_size, 5  # float32, and a quarter more for gradients on their way
    features = max(sum(x.out_features * x.count * x.share for x in block) for block in blocks)
    window_tokens = batch * max(calibration.sequence_length, BATCH_TOKENS)
    return QuantizeMemory(
        block=max(block_size, shape.vocab_size * shape.hidden_size) * compute,
        hessians=_hessian_bytes(blocks, method),
        solver=_solver_bytes(blocks, method),
        training=_training_bytes(weights, method, compute),
        window=window_tokens * math.ceil(6 * shape.hidden_size + 2 * features) * width,
        activations=_activation_bytes(shape, method, calibration),
        read=block_size * DTYPE_BYTES[shape.torch_dtype],
    )


def _hessian_bytes(blocks: list[tuple[LinearShape, ...]], method: MethodConf) -> int:
    """float32 [in, in] for every distinct input of a block; GPTAQ's cross-Hessian doubles it."""
    if not needs_hessian(method):
        return 0
    per_input = 8 if isinstance(method.round, GptaqRound) else 4
    return per_input * max(sum(x.in_features**2 * x.count for x in group_inputs(block)) for block in blocks)


def _solver_bytes(blocks: list[tuple[LinearShape, ...]], method: MethodConf) -> int:
    """float32 W, codes and errors [out, in] of one linear; with a Hessian its damped copy and factor [in, in] too."""
    if isinstance(method.round, NoRound):
        return 0
    factors = 2 if needs_hessian(method) else 0
    return max(4 * x.in_features * (3 * x.out_features + factors * x.in_features) for block in blocks for x in block)


def _training_bytes(num_weights: int, method: MethodConf, compute: int) -> int:
    """float32: what the weights are rounded to, its gradient, two factors that autograd keeps of each, and themselves.

    The latter unless that is what they are computed in. A learned rounding adds its offsets, their gradient, and two
    copies of them to go back to.
    """
    if not isinstance(method.tune, BlockTune):
        return 0
    tensors = 4 + (compute != 4) + (4 if "rounding" in method.tune.learns else 0)
    return tensors * 4 * num_weights


def _activation_bytes(shape: ShapeConf, method: MethodConf, calibration: CalibrationConf) -> int:
    if not needs_data(method):
        return 0
    streams = 2 if needs_reference_stream(method) else 1
    return 2 * streams * calibration.num_sequences * calibration.sequence_length * shape.hidden_size * 4


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateMemory:
    """Bytes on each GPU (or on the host of a CPU node) while an engine scores."""

    weights: int
    kv_cache: int
    working: int

    @property
    def device_bytes(self) -> int:
        return self.weights + self.kv_cache + self.working


def evaluate_memory(
    architecture: str,
    shape: ShapeConf,
    scheme: SchemeConf,
    weight_format: str,
    suite: SuiteConf,
    tensor_parallel_size: int = 1,
) -> EvaluateMemory:
    """Bytes per GPU. Linears and vocabulary matrices are cut, norms, routers and the vision tower are replicated."""
    counts = parameters(architecture, shape)
    dtype = shape.torch_dtype if suite.dtype == "auto" else suite.dtype
    size = DTYPE_BYTES[dtype]
    cut = quantized_bytes(architecture, shape, scheme, weight_format, dtype) + (counts.embedding + counts.head) * size
    blocks = [block_linears(architecture, shape, index) for index, _ in block_kinds(architecture, shape)]
    widest = max(x.out_features * x.count * x.share for block in blocks for x in block)
    # float32 logits and their log-probabilities for one chunk, whole vocabulary; hidden states and the widest linear's
    working = CHUNK_TOKENS * math.ceil(8 * shape.vocab_size + (4 * shape.hidden_size + 2 * widest) * size)
    if weight_format == "packed":
        # the engine fuses linears with one input and multiplies them out together
        fused = max(sum(x.num_weights for x in block if x.group == g.group) for block in blocks for g in block)
        working += math.ceil(fused * size / tensor_parallel_size)
    return EvaluateMemory(
        weights=math.ceil(cut / tensor_parallel_size) + (counts.rest + counts.extra) * size,
        kv_cache=NUM_WINDOWS * window_cache_bytes(architecture, shape, suite, tensor_parallel_size, size),
        working=working,
    )


def window_cache_bytes(
    architecture: str, shape: ShapeConf, suite: SuiteConf, tensor_parallel_size: int, size: int
) -> int:
    """Keys and values (Mamba: convolution and float32 scan state) of one evaluation window on one GPU."""
    if architecture == "mamba":
        channels = math.ceil(required_size(shape, "intermediate_size") / tensor_parallel_size)
        state = 4 * required_size(shape, "state_size") + size * required_size(shape, "conv_kernel")
        return shape.num_hidden_layers * channels * state
    tokens = max(suite.sequence_length, TASK_CONTEXT if suite.tasks else 0)
    heads = math.ceil(num_key_value_heads(shape) / tensor_parallel_size)
    return 2 * shape.num_hidden_layers * heads * head_dim(shape) * min(tokens, shape.max_position_embeddings) * size
