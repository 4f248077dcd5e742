"""Work that each slot of a method does on one block: pure counting of FLOP, bytes and sequential steps.

`SLOT_WORK` is keyed by the slot's dataclass: a new algorithm adds one function and one line.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conf.schema import (
    AwqScale,
    BlockTune,
    ColumnsKeep,
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
    MseClip,
    NearestRound,
    NoIncohere,
    NoKeep,
    NoRotate,
    NoRound,
    NoScale,
    NoTune,
    RandomRotate,
    RmsClip,
    SearchClip,
    ShapeConf,
    SmoothScale,
)
from orchestrator.memory_model import needs_data, needs_hessian, needs_reference_stream
from orchestrator.shapes import LinearShape, group_inputs, required_size

PASS_BYTES = 8  # one elementwise pass: read and write one float32
FAKE_QUANTIZE_BYTES = 150  # fake-quantization of one weight, forward and backward, as a chain of elementwise kernels
AWQ_MODULES = 4 / 3  # the modules AWQ compares overlap: per candidate they cost this many forwards of the block
SCAN_PASSES = 6  # elementwise passes over Mamba's states [tokens, channels, state] in one forward
SLOTS = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")


@dataclass(frozen=True)
class Work:
    """Work of one kind each; adds up. forward and float32 in FLOP, traffic in bytes, columns in sequential steps."""

    forward: float = 0.0
    float32: float = 0.0
    traffic: float = 0.0
    columns: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.forward + other.forward,
            self.float32 + other.float32,
            self.traffic + other.traffic,
            self.columns + other.columns,
        )

    def __mul__(self, factor: float) -> "Work":
        return Work(factor * self.forward, factor * self.float32, factor * self.traffic, factor * self.columns)


@dataclass(frozen=True)
class Block:
    """One decoder block and the tokens that run through it."""

    linears: tuple[LinearShape, ...]
    num_sequences: int
    sequence_length: int
    scan_bytes_per_token: float

    @property
    def num_tokens(self) -> int:
        return self.num_sequences * self.sequence_length

    @property
    def num_weights(self) -> int:
        return sum(x.num_weights for x in self.linears)

    def forward(self, num_tokens: float) -> Work:
        """One forward of the block over so many tokens, attention scores not counted."""
        active = sum(x.num_weights * x.share for x in self.linears)
        return Work(forward=2 * active * num_tokens, traffic=self.scan_bytes_per_token * num_tokens)

    def passes(self, number: float) -> Work:
        """So many elementwise passes over all weights."""
        return Work(traffic=number * PASS_BYTES * self.num_weights)

    @property
    def solve(self) -> Work:
        """Factorization of every Hessian (4/3 n^3) and compensation of every linear (m n^2), column by column."""
        return Work(
            float32=sum(x.count * x.in_features**2 * (4 / 3 * x.in_features + x.out_features) for x in self.linears),
            columns=sum(x.count * x.in_features for x in self.linears),
        )

    @property
    def quadratic_form(self) -> Work:
        """E H for every linear (2 m n^2): a proxy loss, a greedy pass."""
        return Work(float32=sum(2 * x.num_weights * x.in_features for x in self.linears))


def forward_work(method: MethodConf, block: Block) -> Work:
    """Capture and propagate, and once more where a full-precision stream runs beside."""
    if not needs_data(method):
        return Work()
    return block.forward(block.num_tokens) * (3 if needs_reference_stream(method) else 2)


def hessian_work(method: MethodConf, block: Block) -> Work:
    """2 n^2 FLOP per token and distinct input; GPTAQ's cross-Hessian again as much."""
    if not needs_hessian(method):
        return Work()
    flops = sum(2 * block.num_tokens * x.share * x.count * x.in_features**2 for x in group_inputs(block.linears))
    return Work(float32=flops * (2 if isinstance(method.round, GptaqRound) else 1))


def _nothing(_: Any, __: Block) -> Work:
    return Work()


def _hadamard_rotate(_: HadamardRotate, block: Block) -> Work:
    return block.passes(2 * 30)  # float64; fold, both sides, about 13 butterfly levels each, back for the report


def _random_rotate(_: RandomRotate, block: Block) -> Work:
    """One side of every linear by a dense matrix of the hidden size, which is the side that most of them share."""
    return Work(float32=sum(2 * x.num_weights * min(x.in_features, x.out_features) for x in block.linears))


def _awq_scale(slot: AwqScale, block: Block) -> Work:
    return (block.forward(block.num_tokens) * AWQ_MODULES + block.passes(6)) * slot.grid


def _smooth_scale(_: SmoothScale, block: Block) -> Work:
    return block.passes(2)


def _kronecker_incohere(_: KroneckerIncohere, block: Block) -> Work:
    """Both sides of W there and back, both sides of H, each as two small factors: 2 (sqrt m + sqrt n) m n a side."""
    flops = 0.0
    for x in block.linears:
        sides = 2 * (math.sqrt(x.out_features) + math.sqrt(x.in_features))
        flops += 2 * x.num_weights * 2 * sides + x.count * 2 * x.in_features**2 * 4 * math.sqrt(x.in_features)
    return Work(float32=flops)


def _hadamard_incohere(_: HadamardIncohere, block: Block) -> Work:
    return block.passes(8)


def _columns_keep(_: ColumnsKeep, block: Block) -> Work:
    return block.passes(40 * 4)  # the sensitivity uses a grid tuned in 40 steps


def _mask_keep(_: MaskKeep, block: Block) -> Work:
    return Work(float32=sum(4 / 3 * x.count * x.in_features**3 for x in block.linears)) + block.passes(4)


def _minmax_clip(_: MinmaxClip, block: Block) -> Work:
    return block.passes(2)


def _mse_clip(slot: MseClip, block: Block) -> Work:
    return block.passes(4 * slot.steps)


def _search_clip(slot: SearchClip, block: Block) -> Work:
    candidates = slot.grid * slot.max_shrink
    return Work(traffic=candidates * slot.num_tokens * 1.5 * PASS_BYTES * block.num_weights)


def _rms_clip(slot: RmsClip, block: Block) -> Work:
    return block.passes(2) + (block.quadratic_form + block.passes(4)) * len(slot.candidates)


def _block_tune(slot: BlockTune, block: Block) -> Work:
    """Forward and backward (three forwards' worth) of each batch, and a fake-quantization of all weights each step."""
    steps = slot.iterations or slot.epochs * math.ceil(block.num_sequences / slot.batch_size)
    fake_quantize = Work(traffic=FAKE_QUANTIZE_BYTES * block.num_weights)
    return (block.forward(slot.batch_size * block.sequence_length) * 3 + fake_quantize) * steps


def _nearest_round(_: NearestRound, block: Block) -> Work:
    return block.passes(6)


def _gptq_round(_: GptqRound, block: Block) -> Work:
    return block.solve + block.quadratic_form


def _gptaq_round(_: GptaqRound, block: Block) -> Work:
    return block.solve * 2 + block.quadratic_form


def _ldlq_round(slot: LdlqRound, block: Block) -> Work:
    """A greedy pass is a quadratic form in sequential columns."""
    columns = Work(columns=block.solve.columns)
    return block.solve + block.quadratic_form + (block.quadratic_form + columns) * slot.greedy_passes


def _hqq_round(slot: HqqRound, block: Block) -> Work:
    return block.passes(10 * slot.iterations)


SLOT_WORK: dict[type, Callable[[Any, Block], Work]] = {
    NoRotate: _nothing,
    HadamardRotate: _hadamard_rotate,
    RandomRotate: _random_rotate,
    NoScale: _nothing,
    AwqScale: _awq_scale,
    SmoothScale: _smooth_scale,
    LearnedScale: _nothing,  # trained by slot tune
    NoIncohere: _nothing,
    KroneckerIncohere: _kronecker_incohere,
    HadamardIncohere: _hadamard_incohere,
    NoKeep: _nothing,
    ColumnsKeep: _columns_keep,
    MaskKeep: _mask_keep,
    MinmaxClip: _minmax_clip,
    MseClip: _mse_clip,
    SearchClip: _search_clip,
    RmsClip: _rms_clip,
    LearnedClip: _nothing,  # trained by slot tune
    NoTune: _nothing,
    BlockTune: _block_tune,
    NoRound: _nothing,
    NearestRound: _nearest_round,
    GptqRound: _gptq_round,
    GptaqRound: _gptaq_round,
    LdlqRound: _ldlq_round,
    HqqRound: _hqq_round,
}


def scan_bytes(architecture: str, shape: ShapeConf) -> float:
    """Bytes that one token moves through the selective scan of one Mamba block; 0 elsewhere."""
    if architecture != "mamba":
        return 0.0
    states = required_size(shape, "intermediate_size") * required_size(shape, "state_size")
    return SCAN_PASSES * 4.0 * states
