"""Work that each slot of a method does on one block: pure counting of FLOP, bytes and sequential steps.

`SLOT_WORK` is keyed by the slot's dataclass: a new algorithm adds one function and one line. m and n are a linear's
outputs and inputs.
"""

import math
from collections.abc import Callable, Sequence
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
    SchemeConf,
    SearchClip,
    ShapeConf,
    SmoothScale,
    VectorCodebookScheme,
)
from orchestrator.shapes import LinearShape, calibrated, group_inputs, required_size
from workers.methods.accounting import VECTOR_SIZE, kept_columns
from workers.methods.registry import Need, follows_original, follows_quantized, needs

PASS_BYTES = 8  # one elementwise pass: read and write one float32
FAKE_QUANTIZE_BYTES = 150  # fake-quantization of one weight, forward and backward, as a chain of elementwise kernels
TURNS = 4  # of a weight into another basis: there, back, and back in float64 (as two) for its loss
BUTTERFLY_PASSES = 2  # of one level of a fast Hadamard transform
NEAREST_VECTOR_PASSES = 250  # of a search for the nearest vector of E8P, over the weights
VECTOR_STEPS = 4  # a step over one vector has the latency of so many columns
SCAN_PASSES = 6  # elementwise passes over Mamba's states [tokens, channels, state] in one forward


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
    """One decoder block, the tokens that run through it, and what it becomes. experts: of the calibration."""

    linears: tuple[LinearShape, ...]
    num_sequences: int
    sequence_length: int
    scan_bytes_per_token: float
    method: MethodConf
    scheme: SchemeConf
    experts: str = "blend"

    @property
    def num_tokens(self) -> int:
        return self.num_sequences * self.sequence_length

    @property
    def num_weights(self) -> int:
        return sum(x.num_weights for x in self.linears)

    def forward(self, num_tokens: float) -> Work:
        """One forward of the block over so many tokens, attention scores not counted."""
        return self._forward(self.linears, num_tokens)

    def calibrating(self, num_tokens: float) -> Work:
        """One forward from which statistics are collected."""
        return self._forward(calibrated(self.linears, self.experts), num_tokens)

    def _forward(self, linears: Sequence[LinearShape], num_tokens: float) -> Work:
        active = sum(x.num_weights * x.share for x in linears)
        return Work(forward=2 * active * num_tokens, traffic=self.scan_bytes_per_token * num_tokens)

    def passes(self, number: float) -> Work:
        """So many elementwise passes over all weights."""
        return Work(traffic=number * PASS_BYTES * self.num_weights)

    @property
    def factors(self) -> Work:
        """One Cholesky of every linear's Hessian: n^3 / 3."""
        return Work(float32=sum(x.count * x.in_features**3 / 3 for x in self.linears))

    @property
    def feedback(self) -> Work:
        """Every column takes up the errors of those before it: m n^2."""
        return Work(float32=sum(x.num_weights * x.in_features for x in self.linears))

    @property
    def columns(self) -> Work:
        """The steps over all columns."""
        return Work(columns=sum(x.count * x.in_features for x in self.linears))

    @property
    def judging(self) -> Work:
        """The reported losses, one in float64, one in float32: m n^2 each, where there is a Hessian."""
        return self.feedback * 3 if Need.HESSIAN in needs(self.method) else Work()

    def work_of(self, slot: str) -> Work:
        """What one slot does."""
        option = getattr(self.method, slot)
        return SLOT_WORK[type(option)](option, self)


def forward_work(block: Block) -> Work:
    """One run of each stream that is followed; one more to collect, unless only the original one is.

    A cross-Hessian is collected from the original stream too.
    """
    method = block.method
    collects = bool(needs(method) - {Need.FULL_PRECISION_STREAM})
    runs = follows_original(method) + follows_quantized(method) * (1 + collects)
    calibrating = collects + (Need.CROSS_HESSIAN in needs(method))
    return block.calibrating(block.num_tokens) * calibrating + block.forward(block.num_tokens) * (runs - calibrating)


def hessian_work(block: Block) -> Work:
    """2 n^2 FLOP per token and distinct input; a cross-Hessian again as much."""
    wanted = needs(block.method) & {Need.HESSIAN, Need.CROSS_HESSIAN}
    inputs = group_inputs(calibrated(block.linears, block.experts))
    flops = sum(2 * block.num_tokens * x.share * x.count * x.in_features**2 for x in inputs)
    return Work(float32=flops * len(wanted))


def _nothing(_: Any, __: Block) -> Work:
    return Work()


def _hadamard_rotate(slot: HadamardRotate, block: Block) -> Work:
    """One side of every linear in float64; and the inputs of the widest, which no fold reaches."""
    traffic = sum(
        2 * BUTTERFLY_PASSES * math.log2(max(x.out_features, x.in_features)) * x.num_weights for x in block.linears
    )
    work = Work(traffic=PASS_BYTES * traffic) * (slot.residual or slot.heads)
    if slot.intermediate and isinstance(block.method.incohere, NoIncohere):
        widest = max(block.linears, key=lambda x: x.in_features)
        work += _hadamard_turns((widest,), both_sides=False)
    return work


def _random_rotate(_: RandomRotate, block: Block) -> Work:
    """One side of every linear by a dense matrix of the hidden size, which is the side that most of them share."""
    return Work(float32=sum(2 * x.num_weights * min(x.in_features, x.out_features) for x in block.linears))


def _awq_scale(slot: AwqScale, block: Block) -> Work:
    """Of each candidate: the weights rounded, the loss of linears that are judged alone, a forward of the others.

    Those run on `num_windows` windows, once more without rounding.
    """
    groups = [x.group for x in block.linears]
    alone = Work(float32=sum(x.num_weights * x.in_features for x in block.linears if groups.count(x.group) == 1))
    windows = min(slot.num_windows, block.num_sequences)
    forward = block.forward(windows * block.sequence_length)
    return (forward + alone + block.passes(6)) * slot.grid + forward


def _smooth_scale(_: SmoothScale | LearnedScale, block: Block) -> Work:
    return block.passes(2)


def _kronecker_incohere(_: KroneckerIncohere, block: Block) -> Work:
    """Each turn multiplies both sides by two small factors, 2 m n (2 sqrt m + 2 sqrt n); of the Hessian 8 n^2.5."""
    flops = 0.0
    for x in block.linears:
        flops += TURNS * 2 * x.num_weights * 2 * (math.sqrt(x.out_features) + math.sqrt(x.in_features))
        flops += x.count * 8 * x.in_features**2.5
    return Work(float32=flops)


def _hadamard_incohere(slot: HadamardIncohere, block: Block) -> Work:
    return _hadamard_turns(block.linears, both_sides=slot.sides == "both")


def _hadamard_turns(linears: tuple[LinearShape, ...], *, both_sides: bool) -> Work:
    """log2 levels of butterflies on each side of every weight, and on both of its Hessian."""
    levels = 0.0
    for x in linears:
        sides = math.log2(x.in_features) + (math.log2(x.out_features) if both_sides else 0)
        levels += TURNS * sides * x.num_weights + 2 * math.log2(x.in_features) * x.count * x.in_features**2
    return Work(traffic=PASS_BYTES * BUTTERFLY_PASSES * levels)


def _columns_keep(slot: ColumnsKeep, block: Block) -> Work:
    """One more fit of the grid, for the sensitivity; and the Schur complement of k kept columns, 2 n^2 k."""
    flops = 0
    for x in block.linears:
        flops += x.count * 2 * x.in_features**2 * kept_columns(slot, block.scheme, x.in_features)
    return block.work_of("clip") + block.passes(8) + Work(float32=flops)


def _mask_keep(_: MaskKeep, block: Block) -> Work:
    return block.factors + block.passes(12)


def _minmax_clip(_: MinmaxClip | LearnedClip, block: Block) -> Work:
    return block.passes(2)


def _mse_clip(slot: MseClip, block: Block) -> Work:
    return block.passes(4 * slot.steps)


def _search_clip(slot: SearchClip, block: Block) -> Work:
    """Of each candidate the outputs of each group on sampled inputs: 2 FLOP a token and weight, three passes."""
    ends = int(slot.max_shrink * slot.grid)
    candidates = ends if slot.symmetric else ends**2
    outputs = sum(x.num_weights / (block.scheme.group_size or x.in_features) for x in block.linears) * slot.num_tokens
    each = Work(float32=2 * slot.num_tokens * block.num_weights, traffic=3 * PASS_BYTES / 2 * outputs)
    return (each + block.passes(8)) * candidates


def _rms_clip(slot: RmsClip, block: Block) -> Work:
    """Each candidate is rounded, and judged by its loss."""
    tried = max(len(slot.candidates), 1)
    again = (block.work_of("round") + block.feedback) * (tried - 1)
    return block.passes(2) * tried + again


def _block_tune(slot: BlockTune, block: Block) -> Work:
    """Forward and backward (three forwards' worth) of each batch and a fake-quantization of all weights, each step.

    All in float32. A second loss takes what the original block makes of the inputs: one more forward.
    """
    steps = slot.iterations or slot.epochs * math.ceil(block.num_sequences / slot.batch_size)
    batch = block.forward(slot.batch_size * block.sequence_length) * 3
    step = Work(float32=batch.forward, traffic=batch.traffic + FAKE_QUANTIZE_BYTES * block.num_weights)
    return step * steps + block.forward(block.num_tokens) * slot.aug_loss


def _nearest_round(_: NearestRound, block: Block) -> Work:
    return block.passes(6) + block.judging


def _gptq_round(_: GptqRound, block: Block) -> Work:
    return block.factors + block.feedback + block.columns + block.judging


def _gptaq_round(_: GptaqRound, block: Block) -> Work:
    """GPTQ with as much again for what targets pass on, and a triangular system for it: n^3."""
    return block.factors * 4 + block.feedback * 2 + block.columns * 2 + block.judging


def _ldlq_round(slot: LdlqRound, block: Block) -> Work:
    """GPTQ's recursion; a greedy pass has 2 m n^2 in as many steps. A codebook searches 8 columns at once."""
    steps, search = block.columns, Work()
    if isinstance(block.scheme, VectorCodebookScheme):
        stages = math.ceil(block.scheme.bits / 2)
        steps = block.columns * (VECTOR_STEPS * stages / VECTOR_SIZE)
        search = block.passes(NEAREST_VECTOR_PASSES * stages)
    greedy = (block.feedback * 2 + steps + search) * slot.greedy_passes
    return block.factors + block.feedback + steps + search + greedy + block.judging


def _hqq_round(slot: HqqRound, block: Block) -> Work:
    return block.passes(10 * slot.iterations) + block.judging


SLOT_WORK: dict[type, Callable[[Any, Block], Work]] = {
    NoRotate: _nothing,
    HadamardRotate: _hadamard_rotate,
    RandomRotate: _random_rotate,
    NoScale: _nothing,
    AwqScale: _awq_scale,
    SmoothScale: _smooth_scale,
    LearnedScale: _smooth_scale,  # where it starts; slot tune trains it
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
    LearnedClip: _minmax_clip,  # slot tune trains it
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
