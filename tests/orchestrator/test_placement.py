"""Placements: tables over models, GPUs and formats, and what must hold for every cluster."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import (
    BlockTune,
    CalibrationConf,
    FloatScheme,
    GptqRound,
    MethodConf,
    NearestRound,
    NodeConf,
    NumericsConf,
    SchemeConf,
    ShapeConf,
    SuiteConf,
    UniformScheme,
)
from orchestrator.memory_model import GIB, evaluate_memory, quantize_memory
from orchestrator.placement import (
    DEVICE_GIB,
    USABLE,
    NoPlacement,
    Placement,
    larger_placements,
    place_evaluate,
    place_quantize,
    place_streamed,
    tensor_parallel_problem,
    tensor_parallel_sizes,
)

CONF = Path(__file__).parents[2] / "conf" / "model"
MODELS = {
    path.stem: (content["architecture"], ShapeConf(**content["shape"]))
    for path in sorted(CONF.glob("*.yaml"))
    if "shape" in (content := yaml.safe_load(path.read_text(encoding="utf-8")))
}
SUITE = SuiteConf(name="suite")
C4 = CalibrationConf(name="c4", source="c4")
RTN = MethodConf(round=NearestRound())
GPTQ = MethodConf(round=GptqRound())
AUTOROUND = MethodConf(tune=BlockTune(learns=["rounding"], batch_size=8), round=NearestRound())
FLOAT32 = NumericsConf()
BASELINE = (FloatScheme(), "source")
W4, W3, W2 = ((UniformScheme(bits=bits), "packed") for bits in (4, 3, 2))


def gpus(num_gpus: int, gpu_memory_gib: float, memory_gib: float = 256, num_cpus: int = 32) -> NodeConf:
    return NodeConf(
        num_gpus=num_gpus,
        gpu_memory_gib=gpu_memory_gib,
        num_cpus=num_cpus,
        memory_gib=memory_gib,
        flops=1e14,
        bandwidth=1e12,
    )


def cpus(memory_gib: float, num_cpus: int = 2) -> NodeConf:
    return NodeConf(num_cpus=num_cpus, memory_gib=memory_gib, flops=1e11, bandwidth=1e10)


def evaluate(
    nodes: Sequence[NodeConf], name: str, form: tuple[SchemeConf, str], engine: str = "vllm"
) -> Placement | NoPlacement:
    return place_evaluate(nodes, *MODELS[name], RTN, *form, SUITE, engine)


def num_gpus(nodes: Sequence[NodeConf], name: str, form: tuple[SchemeConf, str]) -> int | None:
    placement = evaluate(nodes, name, form)
    return placement.num_gpus if isinstance(placement, Placement) else None


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "on_24", "on_80", "on_141"),
    [
        ("llama2-7b", BASELINE, 1, 1, 1),
        ("llama3-8b", BASELINE, 1, 1, 1),
        ("llama2-13b", BASELINE, 2, 1, 1),
        ("llama1-30b", BASELINE, 4, 1, 1),
        ("llama1-65b", BASELINE, 8, 2, 2),
        ("llama2-70b", BASELINE, 8, 2, 2),
        ("llama3-70b", BASELINE, 8, 2, 2),
        ("mixtral-8x7b", BASELINE, 8, 2, 1),
        ("deepseek-moe-16b", BASELINE, 2, 1, 1),
        ("mamba-2.8b", BASELINE, 1, 1, 1),
        ("llava1.5-13b", BASELINE, 2, 1, 1),
        ("llama2-13b", W4, 1, 1, 1),
        ("llama1-30b", W4, 2, 1, 1),
        ("llama2-70b", W4, 2, 1, 1),
        ("llama3-70b", W4, 4, 1, 1),
        ("llama2-70b", W3, 2, 1, 1),
        ("llama2-70b", W2, 1, 1, 1),
        ("llama3-70b", W2, 2, 1, 1),
        ("mixtral-8x7b", W2, 1, 1, 1),
    ],
)
def test_the_smallest_number_of_gpus_that_holds_the_model(
    name: str, form: tuple[SchemeConf, str], on_24: int, on_80: int, on_141: int
) -> None:
    assert [num_gpus([gpus(8, size)], name, form) for size in (24, 80, 141)] == [on_24, on_80, on_141]


def test_one_24_gib_card_holds_a_70b_model_only_at_2_bits() -> None:
    card = [gpus(1, 24)]
    assert [num_gpus(card, "llama2-70b", form) for form in (BASELINE, W4, W3, W2)] == [None, None, None, 1]


def test_a_baseline_that_fits_nowhere_says_what_it_needs_and_what_there_is() -> None:
    refused = evaluate([gpus(1, 24)], "llama2-70b", BASELINE)
    assert isinstance(refused, NoPlacement)
    assert refused.reason.startswith("the 16-bit baseline fits no placement")
    need = evaluate_memory(*MODELS["llama2-70b"], RTN, *BASELINE, SUITE).device_bytes / GIB + DEVICE_GIB
    assert f"{need:.1f} GiB on each of 1" in refused.reason
    assert "1 x 24 GiB" in refused.reason


def test_a_size_that_does_not_divide_is_in_the_reason() -> None:
    refused = evaluate([gpus(8, 12)], "llama1-30b", BASELINE)
    assert isinstance(refused, NoPlacement)
    assert "8 are impossible: 52 attention heads do not divide by 8" in refused.reason


def test_the_transformers_engine_takes_one_gpu_and_dense_weights() -> None:
    assert num_gpus([gpus(8, 24)], "llama2-70b", W2) == 1
    refused = evaluate([gpus(8, 24)], "llama2-70b", W2, engine="transformers")
    assert isinstance(refused, NoPlacement)
    assert evaluate([gpus(8, 24)], "llama2-7b", W2, engine="transformers") == Placement(1, 4, 8.0, 1)


def test_every_gpu_of_a_node_can_be_used_at_once() -> None:
    for node in (gpus(8, 24, num_cpus=8), gpus(8, 24, num_cpus=24), gpus(8, 24, num_cpus=128)):
        placement = evaluate([node], "llama2-7b", W4)
        assert isinstance(placement, Placement)
        assert 8 * placement.num_cpus <= node.num_cpus


def test_the_mini_model_fits_two_cores_and_8_gib_twice() -> None:
    machine = [cpus(8)]
    mini = MODELS["mini-llama"]
    calibration = CalibrationConf(name="mini", source="text", num_sequences=128, sequence_length=256)
    suite = SuiteConf(name="mini", sequence_length=256, dtype="float32", tasks=["mini"])
    quantize = place_quantize(machine, *mini, GPTQ, calibration, FLOAT32)
    score = place_evaluate(machine, *mini, RTN, *W4, suite, "vllm")
    assert isinstance(quantize, Placement) and isinstance(score, Placement)
    for placement in (quantize, score):
        assert (placement.num_gpus, placement.num_cpus, placement.tensor_parallel_size) == (0, 1, 1)
        assert 2 * placement.memory_gib <= 8
    # measured with this model: 0.52 GiB with the libraries of quantization, 1.88 GiB with the engine and its cache
    assert quantize.memory_gib >= 0.52 and score.memory_gib >= 1.88


def test_a_model_too_large_for_a_machine_without_gpus_says_so() -> None:
    refused = evaluate([cpus(8)], "llama2-7b", BASELINE)
    assert isinstance(refused, NoPlacement)
    assert "the largest node has 8.0" in refused.reason


# --- tensor parallelism ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits", "group_size", "sizes"),
    [
        ("llama1-30b", 16, None, (1, 2, 4)),  # 52 heads
        ("llama2-7b", 16, None, (1, 2, 4, 8)),
        ("llama2-7b", 3, None, (1, 2, 4, 8)),  # 11008 / 8 = 1376 = 43 x 32
        ("llama2-7b", 4, 128, (1, 2)),  # 11008 = 86 groups
        ("llama2-7b", 4, 64, (1, 2, 4)),  # 172 groups
        ("llama2-13b", 4, 128, (1, 2, 4)),  # 13824 = 108 groups
        ("llama2-13b", 3, None, (1, 2, 4, 8)),  # 13824 / 8 = 1728 = 54 x 32
        ("llama2-70b", 2, 128, (1, 2, 4, 8)),  # 28672 = 224 groups
        ("deepseek-moe-16b", 16, None, (1, 2, 4, 8)),
        ("deepseek-moe-16b", 2, None, (1, 2, 4)),  # 10944 / 4 = 2736 = 171 x 16, 10944 / 8 = 85.5 x 16
        ("deepseek-moe-16b", 3, None, (1, 2)),  # 10944 / 4 = 2736 = 85.5 x 32
        ("deepseek-moe-16b", 4, None, (1, 2, 4, 8)),
        ("deepseek-moe-16b", 4, 64, (1,)),  # 10944 = 171 groups
        ("mixtral-8x7b", 4, 128, (1, 2, 4, 8)),
        ("mamba-2.8b", 16, None, (1, 2, 4, 8)),
        ("mamba-2.8b", 4, 80, (1, 2, 4, 8)),  # out_proj and x_proj: 5120 = 64 groups
    ],
)
def test_where_a_model_can_be_cut(name: str, bits: int, group_size: int | None, sizes: tuple[int, ...]) -> None:
    form = BASELINE if bits == 16 else (UniformScheme(bits=bits, group_size=group_size), "packed")
    assert tensor_parallel_sizes(*MODELS[name], *form) == sizes


def test_1408_columns_are_cut_between_3_bit_words_in_four_but_not_in_eight() -> None:
    architecture, shape = MODELS["deepseek-moe-16b"]
    only_experts = dataclasses.replace(shape, first_dense_layers=0)
    assert tensor_parallel_problem(architecture, only_experts, *W3, 4) is None
    problem = tensor_parallel_problem(architecture, only_experts, *W3, 8)
    assert problem is not None and "1408 / 8 = 176 inputs are not a multiple of 32 codes of 3 bits" in problem


def test_groups_must_end_where_shards_do() -> None:
    problem = tensor_parallel_problem(*MODELS["llama2-7b"], UniformScheme(bits=4, group_size=128), "packed", 4)
    assert problem == "mlp.down_proj: 11008 / 4 = 2752 inputs are not a multiple of the group size 128"


def test_dense_weights_know_no_words_and_no_groups() -> None:
    form = (UniformScheme(bits=4, group_size=128), "dense")
    assert tensor_parallel_sizes(*MODELS["llama2-7b"], *form) == (1, 2, 4, 8)


@pytest.mark.parametrize(("key_value_heads", "possible"), [(8, True), (4, True), (2, True), (16, True), (3, False)])
def test_key_value_heads_are_divided_or_repeated(key_value_heads: int, possible: bool) -> None:
    architecture, shape = MODELS["llama2-70b"]
    # 48 query heads let 3 key-value heads exist
    changed = dataclasses.replace(shape, num_attention_heads=48, num_key_value_heads=key_value_heads)
    problem = tensor_parallel_problem(architecture, changed, *BASELINE, 8)
    assert (problem is None) is possible
    assert possible or "3 key-value heads" in str(problem)


# --- quantize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_gptq_streams_every_model_through_one_24_gib_card(name: str) -> None:
    placement = place_quantize([gpus(1, 24)], *MODELS[name], GPTQ, C4, FLOAT32)
    assert isinstance(placement, Placement)
    assert (placement.num_gpus, placement.tensor_parallel_size) == (1, 1)
    activations = 2 * 128 * 2048 * MODELS[name][1].hidden_size * 4 / GIB
    assert placement.memory_gib > activations


def test_training_a_70b_block_in_float32_does_not_fit_24_gib() -> None:
    refused = place_quantize([gpus(8, 24)], *MODELS["llama2-70b"], AUTOROUND, C4, FLOAT32)
    assert isinstance(refused, NoPlacement)
    assert "the largest GPU has 24" in refused.reason
    assert isinstance(place_quantize([gpus(1, 80)], *MODELS["llama2-70b"], AUTOROUND, C4, FLOAT32), Placement)


def test_on_mixed_gpus_more_of_them_keep_a_stage_off_the_small_ones() -> None:
    mixed = [gpus(1, 24), gpus(8, 80)]
    small = place_quantize(mixed, *MODELS["llama2-7b"], GPTQ, C4, FLOAT32)
    large = place_quantize(mixed, *MODELS["llama2-70b"], AUTOROUND, C4, FLOAT32)
    assert isinstance(small, Placement) and isinstance(large, Placement)
    assert (small.num_gpus, large.num_gpus) == (1, 2)


def test_quantizing_on_the_processor_asks_for_no_gpu() -> None:
    placement = place_quantize([gpus(1, 24)], *MODELS["llama2-7b"], GPTQ, C4, NumericsConf(device="cpu"))
    assert isinstance(placement, Placement) and placement.num_gpus == 0
    refused = place_quantize([cpus(64)], *MODELS["llama2-7b"], GPTQ, C4, NumericsConf(device="cuda"))
    assert isinstance(refused, NoPlacement) and "no node has a GPU" in refused.reason


def test_streaming_scores_a_baseline_that_no_engine_can_hold() -> None:
    windows = CalibrationConf(name="windows", source="tokens", num_sequences=422, sequence_length=2048)
    placement = place_streamed([gpus(1, 24)], *MODELS["llama2-70b"], windows, NumericsConf(dtype="float16"))
    assert isinstance(placement, Placement) and placement.num_gpus == 1
    assert placement.memory_gib > 2 * 422 * 2048 * 8192 * 4 / GIB


# --- after running out of memory -------------------------------------------------------------------------------------


def test_an_engine_climbs_to_more_gpus() -> None:
    node = [gpus(8, 80)]
    sizes = tensor_parallel_sizes(*MODELS["llama1-30b"], *BASELINE)
    first = evaluate(node, "llama1-30b", BASELINE)
    assert isinstance(first, Placement)
    ladder = larger_placements(node, first, sizes)
    assert [p.tensor_parallel_size for p in ladder] == [2, 4]
    assert all(p.num_gpus == p.tensor_parallel_size for p in ladder)
    assert larger_placements([gpus(1, 80)], first, sizes) == ()


def test_without_gpus_a_stage_gets_twice_the_memory_up_to_a_whole_node() -> None:
    ladder = larger_placements([cpus(8)], Placement(0, 1, 3.0))
    assert [p.memory_gib for p in ladder] == [6.0, 8.0]
    assert larger_placements([cpus(8)], Placement(0, 1, 8.0)) == ()


def test_a_stage_of_one_gpu_climbs_only_to_larger_gpus() -> None:
    assert larger_placements([gpus(8, 80)], Placement(1, 4, 10.0)) == ()
    (larger,) = larger_placements([gpus(1, 24), gpus(8, 80)], Placement(1, 4, 10.0))
    assert larger.num_gpus == 2 and larger.tensor_parallel_size == 1


# --- properties ------------------------------------------------------------------------------------------------------

NODES = st.lists(
    st.builds(
        gpus,
        num_gpus=st.sampled_from([0, 1, 2, 4, 8]),
        gpu_memory_gib=st.sampled_from([24.0, 48.0, 80.0, 141.0]),
        memory_gib=st.sampled_from([4.0, 16.0, 64.0, 512.0]),
        num_cpus=st.sampled_from([1, 2, 8, 64]),
    ),
    min_size=1,
    max_size=3,
)
FORMS = st.sampled_from([BASELINE, W4, W3, W2, (UniformScheme(bits=4, group_size=32), "dense")])


def takers(nodes: Sequence[NodeConf], placement: Placement) -> list[NodeConf]:
    return [
        node
        for node in nodes
        if placement.num_gpus <= node.num_gpus
        and placement.num_cpus <= node.num_cpus
        and placement.memory_gib <= node.memory_gib
    ]


@settings(deadline=None)
@given(NODES, st.sampled_from(sorted(MODELS)), FORMS)
def test_an_engine_fits_wherever_its_placement_can_land(
    nodes: list[NodeConf], name: str, form: tuple[SchemeConf, str]
) -> None:
    placement = evaluate(nodes, name, form)
    if isinstance(placement, NoPlacement):
        assert placement.reason
        return
    assert takers(nodes, placement)
    if placement.num_gpus:
        assert placement.num_gpus == placement.tensor_parallel_size
        need = evaluate_memory(*MODELS[name], RTN, *form, SUITE, placement.tensor_parallel_size).device_bytes
        assert all(need <= USABLE * node.gpu_memory_gib * GIB for node in takers(nodes, placement))


@settings(deadline=None)
@given(NODES, st.sampled_from(sorted(MODELS)), st.sampled_from([GPTQ, AUTOROUND]))
def test_quantization_fits_wherever_its_placement_can_land(
    nodes: list[NodeConf], name: str, method: MethodConf
) -> None:
    placement = place_quantize(nodes, *MODELS[name], method, C4, FLOAT32)
    if isinstance(placement, NoPlacement):
        return
    memory = quantize_memory(*MODELS[name], method, C4, FLOAT32)
    assert takers(nodes, placement)
    assert placement.memory_gib * GIB > memory.host_bytes
    if placement.num_gpus:
        assert all(memory.device_bytes <= USABLE * n.gpu_memory_gib * GIB for n in takers(nodes, placement))
    else:
        assert placement.memory_gib * GIB > memory.device_bytes + memory.host_bytes


@settings(deadline=None)
@given(NODES, st.sampled_from(sorted(MODELS)), FORMS)
def test_every_larger_placement_fits_a_node_and_is_larger(
    nodes: list[NodeConf], name: str, form: tuple[SchemeConf, str]
) -> None:
    placement = evaluate(nodes, name, form)
    if isinstance(placement, NoPlacement):
        return
    for larger in larger_placements(nodes, placement, tensor_parallel_sizes(*MODELS[name], *form)):
        assert takers(nodes, larger)
        assert (larger.num_gpus, larger.memory_gib) > (placement.num_gpus, placement.memory_gib)
        placement = larger


@settings(deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.sampled_from([24.0, 80.0, 141.0]), st.sampled_from([1, 2, 4, 8]))
def test_fewer_bits_never_need_more_gpus(name: str, gpu_memory_gib: float, count: int) -> None:
    needed = [num_gpus([gpus(count, gpu_memory_gib)], name, form) for form in (W2, W4)]
    uncut = [tensor_parallel_sizes(*MODELS[name], *form) for form in (W2, W4)]
    if uncut[0] == uncut[1]:
        assert needed[1] is None or (needed[0] is not None and needed[0] <= needed[1])
