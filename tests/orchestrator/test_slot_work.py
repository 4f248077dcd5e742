"""Work of every option of every slot on a small block, by hand."""

import math
from dataclasses import replace

import pytest

from conf.schema import (
    AwqScale,
    BlockTune,
    ClipConf,
    ColumnsKeep,
    GptaqRound,
    GptqRound,
    HadamardIncohere,
    HadamardRotate,
    HqqRound,
    IncohereConf,
    KeepConf,
    KroneckerIncohere,
    LdlqRound,
    LearnedClip,
    LearnedScale,
    MaskKeep,
    MethodConf,
    MinmaxClip,
    MseClip,
    NearestRound,
    RandomRotate,
    RmsClip,
    RotateConf,
    RoundConf,
    ScaleConf,
    SchemeConf,
    SearchClip,
    SmoothScale,
    TuneConf,
    UniformScheme,
    VectorCodebookScheme,
)
from orchestrator.shapes import LinearShape
from orchestrator.slot_work import SLOT_WORK, Block, Work, forward_work, hessian_work

# Two linears of one group, 8 x 16, and one alone, 16 x 32: 768 weights, 20 sequences of 4 tokens.
LINEARS = (
    LinearShape("gate", "gate_up", 8, 16, "out"),
    LinearShape("up", "gate_up", 8, 16, "out"),
    LinearShape("down", "down", 16, 32, "in"),
)
W, TOKENS = 768, 80
FEEDBACK = 2 * 8 * 16**2 + 16 * 32**2  # m n^2
CHOLESKY = (2 * 16**3 + 32**3) / 3
COLUMNS = 2 * 16 + 32
PASS = 8 * W  # bytes: one float32 read and written
FORWARD = 2 * W * TOKENS


def block(method: MethodConf, scheme: SchemeConf | None = None) -> Block:
    return Block(LINEARS, 20, 4, 0.0, method, scheme or UniformScheme(bits=4))


def work(option: object, scheme: SchemeConf | None = None, **others: object) -> Work:
    """Of one option, in a method whose other slots are neutral."""
    slots = {RotateConf: "rotate", ScaleConf: "scale", IncohereConf: "incohere", KeepConf: "keep", ClipConf: "clip"}
    slots |= {TuneConf: "tune", RoundConf: "round"}
    (slot,) = (name for base, name in slots.items() if isinstance(option, base))
    method = replace(MethodConf(), **{slot: option}, **others)  # type: ignore[arg-type]
    return block(method, scheme).work_of(slot)


def amounts(found: Work) -> tuple[float, float, float, float]:
    return found.forward, found.float32, found.traffic, found.columns


def test_every_option_of_every_slot_has_its_work() -> None:
    slots = (RotateConf, ScaleConf, IncohereConf, KeepConf, ClipConf, TuneConf, RoundConf)
    options = {option for slot in slots for option in slot.__subclasses__()}
    assert set(SLOT_WORK) == {option for option in options if option.__module__ == "conf.schema"}  # not a test's own


@pytest.mark.parametrize(
    ("method", "runs"),
    [
        (MethodConf(round=NearestRound()), 0),
        (MethodConf(round=HqqRound()), 0),
        (MethodConf(round=GptqRound()), 2),  # to collect, and through the quantized block
        (MethodConf(round=GptqRound(), inputs="original"), 1),  # collected on the way
        (MethodConf(scale=AwqScale(), clip=SearchClip(), round=NearestRound(), inputs="original"), 1),
        (MethodConf(scale=AwqScale(), clip=SearchClip(), round=GptqRound()), 2),  # one run collects for all slots
        (MethodConf(round=GptaqRound()), 3),
        (MethodConf(clip=LearnedClip(), tune=BlockTune(), round=NearestRound()), 2),  # original, quantized
        (MethodConf(clip=LearnedClip(), tune=BlockTune(), round=GptqRound()), 3),
    ],
)
def test_the_calibration_runs_through_a_block_so_often(method: MethodConf, runs: int) -> None:
    assert forward_work(block(method)) == Work(forward=runs * FORWARD)


EXPERTS = (LinearShape("experts.*", "experts", 8, 16, "out", count=4, share=0.5),)


@pytest.mark.parametrize(
    ("method", "routed", "calibrating"),
    [
        (MethodConf(round=GptqRound()), 1, 1),
        (MethodConf(round=GptqRound(), inputs="original"), 0, 1),
        (MethodConf(round=GptaqRound()), 1, 2),  # both streams are collected from
        (MethodConf(clip=LearnedClip(), tune=BlockTune(), round=NearestRound()), 2, 0),
    ],
)
def test_with_all_experts_calibrated_every_token_runs_through_each_where_statistics_are_collected(
    method: MethodConf, routed: int, calibrating: int
) -> None:
    weights, inputs = 4 * 8 * 16, 4 * 16**2
    few = replace(block(method), linears=EXPERTS)
    every = replace(few, experts="all")
    assert forward_work(few).forward == 2 * weights * 0.5 * TOKENS * (routed + calibrating)
    assert forward_work(every).forward == 2 * weights * TOKENS * (0.5 * routed + calibrating)
    if calibrating:
        hessians = 2 * TOKENS * inputs * calibrating
        assert hessian_work(every).float32 == 2 * hessian_work(few).float32 == hessians


def test_each_distinct_input_has_its_hessian() -> None:
    one = 2 * TOKENS * (16**2 + 32**2)
    assert hessian_work(block(MethodConf(round=GptqRound()))) == Work(float32=one)
    assert hessian_work(block(MethodConf(round=GptaqRound()))) == Work(float32=2 * one)
    assert hessian_work(block(MethodConf(round=NearestRound()))) == Work()


@pytest.mark.parametrize(
    ("option", "float32", "traffic", "columns"),
    [
        (NearestRound(), 0, 6 * PASS, 0),
        (HqqRound(iterations=20), 0, 200 * PASS, 0),
        (GptqRound(), CHOLESKY + 4 * FEEDBACK, 0, COLUMNS),  # feedback, and the losses: one in float64 counts twice
        (GptaqRound(), 4 * CHOLESKY + 5 * FEEDBACK, 0, 2 * COLUMNS),
        (LdlqRound(greedy_passes=0), CHOLESKY + 4 * FEEDBACK, 0, COLUMNS),
        (LdlqRound(greedy_passes=3), CHOLESKY + 10 * FEEDBACK, 0, 4 * COLUMNS),
    ],
)
def test_rounding(option: RoundConf, float32: float, traffic: float, columns: float) -> None:
    assert amounts(work(option)) == pytest.approx((0, float32, traffic, columns))


@pytest.mark.parametrize(("bits", "stages"), [(2, 1), (3, 2), (4, 2)])
def test_a_codebook_takes_a_step_for_eight_columns_and_searches_each_stage(bits: int, stages: int) -> None:
    """A step over a vector has the latency of four columns, a search takes 250 passes: the recursion and one pass."""
    found = work(LdlqRound(greedy_passes=1), VectorCodebookScheme(bits=bits))
    expected = (0, CHOLESKY + 6 * FEEDBACK, 2 * stages * 250 * PASS, 2 * stages * COLUMNS * 4 / 8)
    assert amounts(found) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("option", "float32", "traffic"),
    [
        (MinmaxClip(), 0, 2 * PASS),
        (LearnedClip(), 0, 2 * PASS),
        (MseClip(steps=80), 0, 320 * PASS),
        (RmsClip(), 0, 2 * PASS),
        # per row: of each of ten candidates the outputs of 512 tokens, (8 + 8 + 16) x 512 numbers in three passes
        (SearchClip(), 10 * 2 * 512 * W, 10 * (8 * PASS + 12 * 32 * 512)),
        (SearchClip(symmetric=False), 100 * 2 * 512 * W, 100 * (8 * PASS + 12 * 32 * 512)),
    ],
)
def test_clipping(option: ClipConf, float32: float, traffic: float) -> None:
    assert amounts(work(option)) == pytest.approx((0, float32, traffic, 0))


def test_every_candidate_of_a_searched_constant_is_rounded_and_judged() -> None:
    found = work(RmsClip(candidates=[1.5, 2.0, 2.4]), round=GptqRound())
    again = CHOLESKY + 4 * FEEDBACK + FEEDBACK
    assert amounts(found) == pytest.approx((0, 2 * again, 3 * 2 * PASS, 2 * COLUMNS))


@pytest.mark.parametrize(
    ("option", "forward", "float32", "traffic"),
    [
        (SmoothScale(), 0, 0, 2 * PASS),
        (LearnedScale(), 0, 0, 2 * PASS),
        # 16 of 20 windows, once unrounded and for each of 20 candidates; `down` is judged by its Hessian
        (AwqScale(), 21 * 2 * W * 64, 20 * 16 * 32**2, 20 * 6 * PASS),
        (AwqScale(grid=5, num_windows=50), 6 * FORWARD, 5 * 16 * 32**2, 5 * 6 * PASS),
    ],
)
def test_scaling(option: ScaleConf, forward: float, float32: float, traffic: float) -> None:
    assert amounts(work(option)) == pytest.approx((forward, float32, traffic, 0))


def test_turning_a_weight_takes_four_turns_and_a_hessian_one() -> None:
    """Kronecker: two factors of sqrt n a side. Hadamard: log2 n levels of two passes a side."""
    small, large = 2 * 128 * (math.sqrt(8) + 4) * 2, 2 * 512 * (4 + math.sqrt(32)) * 2
    hessians = 8 * (2 * 16**2.5 + 32**2.5)
    assert amounts(work(KroneckerIncohere())) == pytest.approx((0, 4 * (2 * small + large) + hessians, 0, 0))
    levels = 4 * (2 * 128 * (3 + 4) + 512 * (4 + 5)) + 2 * (2 * 4 * 16**2 + 5 * 32**2)
    assert amounts(work(HadamardIncohere())) == pytest.approx((0, 0, 8 * 2 * levels, 0))
    inputs = 4 * (2 * 128 * 4 + 512 * 5) + 2 * (2 * 4 * 16**2 + 5 * 32**2)
    assert amounts(work(HadamardIncohere(sides="input"))) == pytest.approx((0, 0, 8 * 2 * inputs, 0))


def test_a_rotation_turns_one_side_of_every_linear_and_the_inputs_of_the_widest() -> None:
    folded = 8 * 2 * 2 * (2 * 128 * 4 + 512 * 5)
    widest = 8 * 2 * (4 * 5 * 512 + 2 * 5 * 32**2)
    assert amounts(work(HadamardRotate())) == pytest.approx((0, 0, folded + widest, 0))
    assert amounts(work(HadamardRotate(intermediate=False))) == pytest.approx((0, 0, folded, 0))
    assert amounts(work(HadamardRotate(), incohere=KroneckerIncohere())) == pytest.approx((0, 0, folded, 0))
    assert amounts(work(HadamardRotate(residual=False, heads=False, intermediate=False))) == (0, 0, 0, 0)
    assert amounts(work(RandomRotate())) == pytest.approx((0, 2 * (2 * 128 * 8 + 512 * 16), 0, 0))


def test_kept_columns_take_one_more_fit_and_a_schur_complement() -> None:
    """Of 16 and 32 inputs 2 and 4 stay: 1.5 bits pay for 1 column in 8 at 4 bits."""
    found = work(ColumnsKeep(extra_bits=1.5), clip=MseClip(steps=10))
    assert amounts(found) == pytest.approx((0, 2 * (2 * 16**2 * 2 + 32**2 * 4), (40 + 8) * PASS, 0))


def test_a_mask_takes_a_factor_of_its_own() -> None:
    assert amounts(work(MaskKeep())) == pytest.approx((0, CHOLESKY, 12 * PASS, 0))


@pytest.mark.parametrize(
    ("tune", "steps", "windows"),
    [
        (BlockTune(epochs=2, batch_size=1), 40, 1),
        (BlockTune(epochs=2, batch_size=8), 6, 8),  # 20 windows are three batches
        (BlockTune(epochs=0, iterations=7, batch_size=4), 7, 4),
    ],
)
def test_a_step_of_training_is_three_forwards_in_float32_and_all_weights_rounded(
    tune: BlockTune, steps: int, windows: int
) -> None:
    expected = (0, steps * 3 * 2 * W * 4 * windows, steps * 150 * W, 0)
    assert amounts(work(tune)) == pytest.approx(expected)
    second = work(replace(tune, aug_loss=True))
    assert amounts(second) == pytest.approx((FORWARD, *expected[1:]))
