"""Bytes from sizes: known answers by hand, and what must hold for every model."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import (
    AwqScale,
    BlockTune,
    CalibrationConf,
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
    MixedScheme,
    MseClip,
    NearestRound,
    NoScale,
    NumericsConf,
    RandomRotate,
    RmsClip,
    ScaleConf,
    SchemeConf,
    SearchClip,
    SmoothScale,
    SuiteConf,
    UniformScheme,
    VectorCodebookScheme,
)
from orchestrator import memory_model as mm
from orchestrator.shapes import (
    block_linears,
    group_inputs,
    parameters,
)
from orchestrator.slot_memory import linear_bytes
from tests.orchestrator.shipped_models import MODELS

C4 = CalibrationConf(name="c4", source="c4")
SUITE = SuiteConf(name="suite")
BASELINE, RTN = MethodConf(), MethodConf(round=NearestRound())
GPTQ, GPTAQ = MethodConf(round=GptqRound()), MethodConf(round=GptaqRound())
HALF = NumericsConf(dtype="bfloat16")


# --- weights ---------------------------------------------------------------------------------------------------------


def test_packed_bytes_of_llama_7b_by_hand() -> None:
    architecture, shape = MODELS["llama2-7b"]
    scheme = UniformScheme(bits=4, group_size=128)
    packed = mm.quantized_bytes(architecture, shape, RTN, scheme, "packed", "float16")
    assert packed == 6_476_005_376 * (4 + 20 / 128) / 8
    checkpoint = mm.checkpoint_bytes(architecture, shape, RTN, scheme, "packed")
    assert checkpoint - packed == 2 * (6_738_415_616 - 6_476_005_376)


def packed_bits(method: MethodConf, scheme: SchemeConf) -> float:
    """Bits per weight of LLaMA-7B's linears: 224 of 32 blocks, 4 x 4096 and one of 11008 inputs, ..."""
    model = MODELS["llama2-7b"]
    return 8 * mm.quantized_bytes(*model, method, scheme, "packed", "float16") / parameters(*model).quantized


def test_packed_bytes_are_those_that_the_method_stores() -> None:
    """The accounting of `workers.methods`, for every linear; each figure by hand."""
    rotated = MethodConf(incohere=KroneckerIncohere(), clip=RmsClip(), round=LdlqRound())
    num_weights, num_linears, num_inputs = 6_476_005_376, 224, 32 * (6 * 4096 + 11008)
    basis = (16 * num_inputs + (64 + 16) * num_linears) / num_weights  # d of every input; a seed and one scale
    assert packed_bits(rotated, UniformScheme(bits=4)) == pytest.approx(4 + basis, abs=1e-8)
    hadamard = MethodConf(incohere=HadamardIncohere(), clip=RmsClip(), round=LdlqRound())
    codebook = VectorCodebookScheme(bits=2)
    assert packed_bits(hadamard, codebook) == pytest.approx(2 + 80 * num_linears / num_weights, abs=1e-8)
    outputs = 32 * (5 * 4096 + 2 * 11008)
    mask = MethodConf(keep=MaskKeep(), round=GptqRound())
    assert packed_bits(mask, MixedScheme(bits=2)) == pytest.approx(3 + 56 * outputs / num_weights, abs=1e-4)


def test_three_bits_take_the_words_they_fill() -> None:
    scheme = UniformScheme(bits=3, group_size=128)
    assert packed_bits(RTN, scheme) == pytest.approx(3.2 + 19 / 128, abs=1e-8)


def test_kept_columns_take_their_bits() -> None:
    owq = MethodConf(keep=ColumnsKeep(extra_bits=0.1), clip=MseClip(), round=GptqRound())
    assert packed_bits(owq, UniformScheme(bits=2)) - packed_bits(GPTQ, UniformScheme(bits=2)) == pytest.approx(
        0.1, abs=0.01
    )


def test_source_weights_take_the_bytes_of_their_dtype() -> None:
    for name, width in (("llama2-7b", 2), ("mamba-2.8b", 4)):
        total = parameters(*MODELS[name]).total
        assert mm.checkpoint_bytes(*MODELS[name], BASELINE, FloatScheme(), "source") == width * total


def test_the_baseline_adds_nothing_to_the_storage_and_a_dense_copy_is_temporary() -> None:
    model = MODELS["llama2-7b"]
    assert mm.disk(*model, BASELINE, FloatScheme(), "source", C4, HALF) == mm.Disk(0, 0)
    scheme = UniformScheme(bits=3)
    packed = mm.disk(*model, GPTQ, scheme, "packed", C4, HALF)
    dense = mm.disk(*model, GPTQ, scheme, "dense", C4, HALF)
    assert packed.kept == dense.kept
    assert packed.temporary == 128 * 2048 * 4096 * 2
    assert dense.temporary == 2 * 6_738_415_616
    assert mm.disk(*model, RTN, scheme, "packed", C4, HALF).temporary == 0
    assert mm.disk(*model, GPTAQ, scheme, "packed", C4, NumericsConf()).temporary == 2 * 128 * 2048 * 4096 * 4


@settings(deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 7), st.sampled_from([None, 16, 32]))
def test_more_bits_never_take_fewer_bytes(name: str, bits: int, group_size: int | None) -> None:
    model = MODELS[name]
    fewer, more = (UniformScheme(bits=b, group_size=group_size) for b in (bits, bits + 1))
    assert mm.checkpoint_bytes(*model, RTN, fewer, "packed") < mm.checkpoint_bytes(*model, RTN, more, "packed")
    assert (
        mm.evaluate_memory(*model, RTN, fewer, "packed", SUITE).device_bytes
        < mm.evaluate_memory(*model, RTN, more, "packed", SUITE).device_bytes
    )


# --- quantize --------------------------------------------------------------------------------------------------------


def test_a_mixtral_block_holds_one_hessian_for_every_distinct_input() -> None:
    memory = mm.quantize_memory(*MODELS["mixtral-8x7b"], GPTQ, C4, HALF)
    # qkv, o, and eight experts' w1/w3 at 4096; eight experts' w2 at 14336
    assert memory.collected == 4 * (10 * 4096**2 + 8 * 14336**2)
    assert len(group_inputs(block_linears(*MODELS["mixtral-8x7b"], 0))) == 4


def test_a_70b_block_needs_what_the_cost_guide_says() -> None:
    memory = mm.quantize_memory(*MODELS["llama2-70b"], GPTQ, C4, HALF)
    assert memory.block == pytest.approx(1.7e9, rel=0.02)
    assert memory.collected == 4 * (3 * 8192**2 + 28672**2)
    assert memory.activations == 2 * 128 * 2048 * 8192 * 2
    assert memory.solver == 4 * 28672 * (1.5 * 8192 + 4 * 28672)  # down_proj is factored: a weight, four Hessians
    assert memory.device_bytes == memory.block + memory.collected + memory.solver < 21 * mm.GIB


def test_methods_without_data_carry_no_activations_and_no_hessian() -> None:
    for method in (RTN, MethodConf(round=HqqRound()), MethodConf(rotate=HadamardRotate(), round=NearestRound())):
        memory = mm.quantize_memory(*MODELS["llama2-7b"], method, C4, HALF)
        assert (memory.activations, memory.collected) == (0, 0)


def memory_of(method: MethodConf, numerics: NumericsConf = HALF, name: str = "llama2-7b") -> mm.QuantizeMemory:
    return mm.quantize_memory(*MODELS[name], method, C4, numerics)


STREAM = 128 * 2048 * 4096 * 2  # of LLaMA-7B in bfloat16
INPUTS = 3 * 4096 + 11008  # of its groups: qkv, o, gate and up, down
SQUARES = 3 * 4096**2 + 11008**2
WEIGHTS = 4 * 4096**2 + 3 * 4096 * 11008


@pytest.mark.parametrize(
    ("method", "streams"),
    [
        (MethodConf(round=GptqRound()), 2),  # through the quantized blocks, and a copy of it
        (MethodConf(round=GptqRound(), inputs="original"), 2),  # through the original ones
        (MethodConf(round=GptaqRound()), 4),  # through both
        (MethodConf(clip=LearnedClip(), tune=BlockTune(learns=["clip"]), round=NearestRound()), 4),
        (MethodConf(clip=LearnedClip(), tune=BlockTune(learns=["clip"], aug_loss=True), round=NearestRound()), 5),
        (MethodConf(scale=AwqScale(num_windows=32), clip=SearchClip(), round=NearestRound(), inputs="original"), 3),
    ],
)
def test_each_stream_of_hidden_states_lies_on_the_host_twice(method: MethodConf, streams: int) -> None:
    """AWQ: 32 of 128 windows, inputs and outputs of two modules."""
    assert memory_of(method).activations == streams * STREAM


@pytest.mark.parametrize(
    ("method", "collected"),
    [
        (MethodConf(round=GptqRound()), 4 * SQUARES),
        (MethodConf(round=GptaqRound()), 8 * SQUARES),
        (MethodConf(incohere=KroneckerIncohere(), clip=RmsClip(), round=NearestRound()), 4 * SQUARES),
        (MethodConf(scale=SmoothScale(), round=NearestRound()), 0),
        (MethodConf(clip=SearchClip(num_tokens=512), round=NearestRound()), 4 * (SQUARES + 2 * 512 * INPUTS)),
        (MethodConf(clip=LearnedClip(), tune=BlockTune(learns=["clip"]), round=NearestRound()), 0),
    ],
)
def test_what_calibration_collects_of_a_block(method: MethodConf, collected: int) -> None:
    assert memory_of(method).collected == collected


@pytest.mark.parametrize(("experts", "share", "denser"), [("blend", 2 / 8, 8), ("all", 1.0, 1)])
def test_calibrating_all_experts_keeps_the_inputs_of_each(experts: str, share: float, denser: int) -> None:
    """Mixtral: eight experts with 4096 and 14336 inputs, two for a token; of a part a sample is 8 x as dense."""
    calibration = dataclasses.replace(C4, experts=experts)

    def memory(method: MethodConf) -> mm.QuantizeMemory:
        return mm.quantize_memory(*MODELS["mixtral-8x7b"], method, calibration, HALF)

    waiting = memory(GPTAQ).window - memory(GPTQ).window
    assert waiting == 2048 * 4 * (2 * 4096 + 8 * share * (4096 + 14336))
    sampled = MethodConf(clip=SearchClip(num_tokens=512), round=GptqRound())
    inputs = 2 * 4096 + 8 * denser * share * (4096 + 14336)
    assert memory(sampled).collected - memory(GPTQ).collected == 4 * 2 * 512 * inputs


def test_inputs_of_the_original_model_wait_for_those_of_the_quantized_one() -> None:
    extra = memory_of(GPTAQ).window - memory_of(GPTQ).window
    assert extra == 2048 * INPUTS * 4


@pytest.mark.parametrize(
    ("method", "weights", "squares"),  # copies of down_proj, 4096 x 11008, and of its Hessian, which are the largest
    [
        (RTN, 4, 0),
        (MethodConf(round=HqqRound()), 7.2, 0),
        (GPTQ, 1.5, 4),
        (MethodConf(clip=RmsClip(), round=LdlqRound()), 1.5, 4),
        (GPTAQ, 1.5, 5),
        (MethodConf(incohere=KroneckerIncohere(), clip=RmsClip(), round=LdlqRound()), 1.5 + 1.3, 4 + 2.3),
        (MethodConf(incohere=HadamardIncohere(), clip=RmsClip(), round=LdlqRound()), 1.5 + 1.3, 4 + 2.3),
        (MethodConf(rotate=HadamardRotate(), round=GptqRound()), 1.5 + 1.3, 4 + 2.3),
        (MethodConf(rotate=HadamardRotate(intermediate=False), round=GptqRound()), 1.5, 4),
        (MethodConf(keep=ColumnsKeep(), clip=MseClip(), round=GptqRound()), 1.5 + 2.1, 4 + 1.4),
        (MethodConf(keep=MaskKeep(), round=GptqRound()), 13.0, 1.5),
    ],
)
def test_a_linear_in_work_is_held_so_many_times(method: MethodConf, weights: float, squares: float) -> None:
    expected = 4 * (weights * 4096 * 11008 + squares * 11008**2)
    assert memory_of(method).solver == pytest.approx(expected, abs=1)


def test_losses_in_float64_take_more_than_factoring_where_a_linear_is_wider_than_long() -> None:
    (down,) = (x for x in block_linears(*MODELS["llama2-7b"], 0) if x.name == "mlp.down_proj")
    tall = dataclasses.replace(down, out_features=11008, in_features=4096)
    assert linear_bytes(GPTQ, tall) == 4 * 8.5 * 4096 * 11008


@pytest.mark.parametrize(
    ("tune", "scale", "copies"),
    [
        (BlockTune(learns=["clip"]), NoScale(), 3),
        (BlockTune(learns=["clip", "scale"]), LearnedScale(), 5),
        (BlockTune(learns=["rounding"], optimizer="adamw"), NoScale(), 9),
        (BlockTune(learns=["rounding"], optimizer="signsgd"), NoScale(), 7),
    ],
)
def test_training_holds_so_many_copies_of_a_block_and_its_batch_in_float32(
    tune: BlockTune, scale: ScaleConf, copies: int
) -> None:
    method = MethodConf(scale=scale, clip=LearnedClip(), tune=tune, round=NearestRound())
    token = 6 * 4096 + 2 * (5 * 4096 + 2 * 11008)
    batch = 2 * 2048 * token
    assert memory_of(method, NumericsConf()).training == 4 * (copies * WEIGHTS + batch)
    assert memory_of(method, HALF).training == 4 * ((copies + 1) * WEIGHTS + batch)
    learned = memory_of(method).solver - memory_of(dataclasses.replace(method, tune=BlockTune())).solver
    assert learned == (4 * WEIGHTS if "rounding" in tune.learns else 0)


def test_training_a_block_takes_more_of_the_device_than_rounding_it() -> None:
    tuned = MethodConf(tune=BlockTune(learns=["clip"]), round=NearestRound())
    offsets = MethodConf(tune=BlockTune(learns=["clip", "rounding"]), round=NearestRound())
    plain, clip, rounding = (memory_of(method).device_bytes for method in (RTN, tuned, offsets))
    assert plain < clip < rounding


def test_a_rotation_turns_a_matrix_of_the_vocabulary_in_parts() -> None:
    turned = memory_of(MethodConf(rotate=HadamardRotate(), round=NearestRound()))
    assert turned.rotation == 2 * 32000 * 4096 + 4 * 8 * 2**24
    assert turned.vocabulary == 2 * 2 * 32000 * 4096 + 4 * 8 * 2**24
    random = memory_of(MethodConf(rotate=RandomRotate(), round=NearestRound()))
    assert random.rotation - turned.rotation == 8 * 4096**2
    assert memory_of(RTN).rotation == 0


@settings(deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 256), st.integers(1, 4096))
def test_more_calibration_never_takes_less_memory(name: str, num_sequences: int, sequence_length: int) -> None:
    def memory(sequences: int, length: int) -> tuple[int, int]:
        calibration = CalibrationConf("x", "c4", num_sequences=sequences, sequence_length=length)
        found = mm.quantize_memory(*MODELS[name], GPTQ, calibration, HALF)
        return found.device_bytes, found.host_bytes

    device, host = memory(num_sequences, sequence_length)
    for larger in (memory(num_sequences + 1, sequence_length), memory(num_sequences, sequence_length + 1)):
        assert larger[0] >= device and larger[1] > host


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_keys_and_values_of_one_window_of_llama_7b() -> None:
    assert mm.window_cache_bytes(*MODELS["llama2-7b"], SUITE, 1, 2) == 2 * 32 * 4096 * 2048 * 2  # 1 GiB
    assert mm.window_cache_bytes(*MODELS["llama3-8b"], SUITE, 1, 2) == 2 * 32 * 1024 * 2048 * 2  # a quarter
    assert mm.window_cache_bytes(*MODELS["llama3-8b"], SUITE, 16, 2) == 2 * 32 * 128 * 2048 * 2  # heads repeated


def test_a_window_is_never_longer_than_the_model_can_read() -> None:
    architecture, shape = MODELS["mini-llama"]
    tasks = SuiteConf(name="x", sequence_length=256, tasks=["mmlu"])
    assert mm.window_cache_bytes(architecture, shape, tasks, 1, 2) == 2 * 4 * 256 * 512 * 2


def test_mamba_keeps_a_state_instead_of_keys_and_values() -> None:
    short, long = (SuiteConf(name="x", sequence_length=n) for n in (256, 2048))
    model = MODELS["mamba-2.8b"]
    assert mm.window_cache_bytes(*model, short, 1, 4) == mm.window_cache_bytes(*model, long, 1, 4)
    assert mm.window_cache_bytes(*model, short, 1, 4) == 64 * 5120 * (16 * 4 + 4 * 4)


def test_evaluating_in_float32_doubles_the_weights() -> None:
    single = dataclasses.replace(SUITE, dtype="float32")
    half = mm.evaluate_memory(*MODELS["llama2-7b"], BASELINE, FloatScheme(), "source", SUITE)
    full = mm.evaluate_memory(*MODELS["llama2-7b"], BASELINE, FloatScheme(), "source", single)
    assert full.weights == 2 * half.weights == 4 * 6_738_415_616


@settings(deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from([(FloatScheme(), "source"), (UniformScheme(bits=3), "packed"), (UniformScheme(bits=3), "dense")]),
    st.sampled_from([1, 2, 4]),
)
def test_more_gpus_never_take_more_memory_each(name: str, form: tuple[SchemeConf, str], size: int) -> None:
    fewer, more = (mm.evaluate_memory(*MODELS[name], RTN, *form, SUITE, n) for n in (size, 2 * size))
    assert more.device_bytes < fewer.device_bytes
    assert more.weights * 2 * size >= fewer.weights * size
