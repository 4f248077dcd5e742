"""Bytes from sizes and formats alone: weights, checkpoints, and what each stage holds at its peak.

Pure, no torch. Weights are exact; what a stage holds is an upper estimate for its placement, not a measurement.
"""

import math
from dataclasses import dataclass

from conf.schema import (
    BlockTune,
    CalibrationConf,
    FloatScheme,
    MethodConf,
    NumericsConf,
    RealZeroScheme,
    SchemeConf,
    ShapeConf,
    SuiteConf,
    UniformScheme,
)
from orchestrator.shapes import (
    DTYPE_BYTES,
    block_kinds,
    block_linears,
    block_rest,
    calibrated,
    head_dim,
    num_key_value_heads,
    parameters,
    required_size,
)
from orchestrator.slot_memory import (
    collected_bytes,
    compared_bytes,
    host_bytes,
    learned_bytes,
    linear_bytes,
    num_streams,
    recorded_bytes,
    rotation_bytes,
    stream_bytes,
    training_bytes,
)
from workers.arch import is_skipped
from workers.datasets import IMAGES
from workers.methods.accounting import stored_bits
from workers.methods.registry import follows_original, shares_statistics

GIB = 2**30
CHUNK_TOKENS = 2048  # tokens the engine scores at once (its max_num_batched_tokens)
NUM_WINDOWS = 2  # windows whose keys and values must fit: one in work, one waiting
TASK_CONTEXT = 2048  # tokens of a benchmark task's longest request
BATCH_TOKENS = 2048  # tokens of one calibration batch
AUTOGRAD_COPIES = 2  # of a token's numbers, which training keeps where a plain forward drops them


# --- weights ---------------------------------------------------------------------------------------------------------


def quantized_bytes(
    architecture: str, shape: ShapeConf, method: MethodConf, scheme: SchemeConf, weight_format: str, dtype: str
) -> int:
    """Bytes of all block linears. weight_format: source or dense (numbers of `dtype`), or packed.

    Packed codes of a grid fill 32-bit words with whole ones: 3 bits take 3.2.
    """
    if weight_format != "packed" or isinstance(scheme, FloatScheme):
        return parameters(architecture, shape).quantized * DTYPE_BYTES[dtype]
    words = 32 / (32 // scheme.bits) - scheme.bits if isinstance(scheme, UniformScheme | RealZeroScheme) else 0
    bits = 0.0
    for index, count in block_kinds(architecture, shape):
        for x in block_linears(architecture, shape, index):
            if is_skipped(x.name, method.skip):
                bits += count * x.num_weights * 8 * DTYPE_BYTES[shape.torch_dtype]
            else:
                stored = stored_bits(method, scheme, x.out_features, x.in_features)
                bits += count * (x.count * stored + words * x.num_weights)
    return math.ceil(bits / 8)


@dataclass(frozen=True)
class Disk:
    """Bytes on the storage: `kept` while the cell is, `temporary` at most beside it while the cell runs."""

    kept: int
    temporary: int


def checkpoint_bytes(
    architecture: str, shape: ShapeConf, method: MethodConf, scheme: SchemeConf, weight_format: str
) -> int:
    """Bytes of a whole checkpoint: block linears in weight_format, everything else in the model's own dtype."""
    counts = parameters(architecture, shape)
    linears = quantized_bytes(architecture, shape, method, scheme, weight_format, shape.torch_dtype)
    return linears + (counts.total - counts.quantized) * DTYPE_BYTES[shape.torch_dtype]


def disk(
    architecture: str,
    shape: ShapeConf,
    method: MethodConf,
    scheme: SchemeConf,
    weight_format: str,
    calibration: CalibrationConf,
    numerics: NumericsConf,
) -> Disk:
    """What one cell adds to the storage. The 16-bit baseline points at the model's own files and keeps nothing.

    Temporary: the streams a killed worker resumes from while quantizing, then a dense copy where the engine needs one.
    """
    if isinstance(scheme, FloatScheme):
        return Disk(0, 0)
    streams = num_streams(method) * stream_bytes(shape, calibration, numerics)
    dense = checkpoint_bytes(architecture, shape, method, scheme, "dense") if weight_format == "dense" else 0
    return Disk(checkpoint_bytes(architecture, shape, method, scheme, "packed"), max(streams, dense))


def statistics_bytes(
    architecture: str, shape: ShapeConf, method: MethodConf, calibration: CalibrationConf, numerics: NumericsConf
) -> int:
    """What a cell may leave in the storage of its calibration for other cells, where none has been before it."""
    if not shares_statistics(method, numerics, 0):
        return 0
    every = shares_statistics(method, numerics, 1)
    of_blocks = [
        (collected_bytes(calibrated(linears, calibration.experts), method), count if every else 1)
        for linears, count in (
            (block_linears(architecture, shape, index), count) for index, count in block_kinds(architecture, shape)
        )
    ]
    beside = compared_bytes(shape, method, calibration, numerics)
    if follows_original(method):
        beside += stream_bytes(shape, calibration, numerics)
    return sum(count * (size + beside) for size, count in (of_blocks if every else of_blocks[:1]))


# --- quantize --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizeMemory:
    """Bytes at the peak of the block loop.

    On the device: block and collected (Hessians and samples of its inputs), and beside them the largest of window
    (intermediate values of one batch), training (slot tune, its window included), rotation and solver (the linear being
    rounded, and what was learned); or, alone before and after the loop, vocabulary (a matrix of it, what a rotation
    makes of it, and what makes tokens of images where there are any). On the host: activations and read (a block as it
    lies in the file).
    """

    vocabulary: int
    block: int
    collected: int
    window: int
    training: int
    rotation: int
    solver: int
    activations: int
    read: int

    @property
    def device_bytes(self) -> int:
        step = max(self.window, self.training, self.rotation, self.solver)
        return max(self.vocabulary, self.block + self.collected + step)

    @property
    def host_bytes(self) -> int:
        return self.activations + self.read


def quantize_memory(
    architecture: str, shape: ShapeConf, method: MethodConf, calibration: CalibrationConf, numerics: NumericsConf
) -> QuantizeMemory:
    """Peak of one block in work: its weights, what is collected of all its inputs, and one step of the work on it.

    With calibration.experts=all an expert's intermediate values are of all tokens, but of one expert at a time, so that
    they never take more than those of the experts that a token is routed to.
    """
    kinds = [index for index, _ in block_kinds(architecture, shape)]
    blocks = [block_linears(architecture, shape, index) for index in kinds]
    seen = [calibrated(block, calibration.experts) for block in blocks]
    compute = DTYPE_BYTES[numerics.dtype]
    weights = max(sum(x.num_weights for x in block) for block in blocks)
    block_size = weights + max(block_rest(architecture, shape, index) for index in kinds)
    features = max(sum(x.out_features * x.count * x.share for x in block) for block in blocks)
    token = math.ceil(6 * shape.hidden_size + 2 * features)  # numbers that one token makes on its way through a block
    batch = max(calibration.sequence_length, BATCH_TOKENS)
    training = training_bytes(weights, method, numerics)
    rotation = rotation_bytes(shape, method, numerics)
    tower = shape.extra_parameters * compute if calibration.source == IMAGES else 0
    if isinstance(method.tune, BlockTune):
        training += AUTOGRAD_COPIES * method.tune.batch_size * calibration.sequence_length * token * 4
    return QuantizeMemory(
        vocabulary=shape.vocab_size * shape.hidden_size * compute + rotation + tower,
        block=block_size * compute,
        collected=max(collected_bytes(block, method) for block in seen),
        window=batch * token * compute + max(recorded_bytes(block, method, batch) for block in seen),
        training=training,
        rotation=rotation,
        solver=max(linear_bytes(method, x) for block in blocks for x in block) + learned_bytes(weights, method),
        activations=host_bytes(shape, method, calibration, numerics),
        read=block_size * DTYPE_BYTES[shape.torch_dtype],
    )


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
    method: MethodConf,
    scheme: SchemeConf,
    weight_format: str,
    suite: SuiteConf,
    tensor_parallel_size: int = 1,
) -> EvaluateMemory:
    """Bytes per GPU. Linears and vocabulary matrices are cut, norms, routers and the vision tower are replicated."""
    counts = parameters(architecture, shape)
    dtype = shape.torch_dtype if suite.dtype == "auto" else suite.dtype
    size = DTYPE_BYTES[dtype]
    linears = quantized_bytes(architecture, shape, method, scheme, weight_format, dtype)
    cut = linears + (counts.embedding + counts.head) * size
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
