"""Sizes of every shipped model: its linears, its parameters, the groups its rows divide into."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import ConfigError
from orchestrator.config_shapes import shape_from_config
from orchestrator.shapes import (
    ARCHITECTURES,
    block_kinds,
    block_linears,
    group_size_problem,
    modality,
    parameters,
    structure,
)
from tests.orchestrator.shipped_models import MODELS
from workers.arch import ARCHITECTURES as WORKER_ARCHITECTURES


def fits(name: str, group_size: int) -> bool:
    return group_size_problem(*MODELS[name], group_size) is None


@pytest.mark.parametrize("name", ["llama2-7b", "mixtral-8x7b", "deepseek-moe-16b", "mamba-1.4b", "llava1.5-7b"])
def test_the_linears_of_a_block_are_those_the_worker_quantizes(name: str) -> None:
    architecture, shape = MODELS[name]
    kinds = WORKER_ARCHITECTURES[architecture].kinds
    for kind, (index, _) in zip(kinds, block_kinds(architecture, shape), strict=True):
        counted = {x.name: x.group for x in block_linears(architecture, shape, index)}
        assert counted == {linear: group.name for group in kind.groups for linear in group.linears}


def test_grouped_query_attention_has_narrow_keys_and_values() -> None:
    widths = {x.name: x.out_features for x in block_linears(*MODELS["llama2-70b"], 0)}
    assert (widths["self_attn.q_proj"], widths["self_attn.k_proj"], widths["self_attn.v_proj"]) == (8192, 1024, 1024)


def test_only_the_first_deepseek_block_is_dense() -> None:
    architecture, shape = MODELS["deepseek-moe-16b"]
    assert block_kinds(architecture, shape) == [(0, 1), (1, 27)]
    assert sum(x.count for x in block_linears(architecture, shape, 0)) == 7
    assert sum(x.count for x in block_linears(architecture, shape, 1)) == 199  # 4 + 3 x 65
    shared = [x for x in block_linears(architecture, shape, 1) if "shared" in x.name]
    assert {x.in_features for x in shared} == {2048, 2816}


def test_an_expert_sees_its_share_of_the_tokens() -> None:
    shares = {x.name: x.share for x in block_linears(*MODELS["mixtral-8x7b"], 0)}
    assert shares["mlp.experts.*.up_proj"] == 2 / 8
    assert shares["self_attn.q_proj"] == 1


def test_parameters_match_the_tensors_of_a_real_checkpoint(shared: Path) -> None:
    for name in ("mini_reference", "stories260k"):
        directory = shared / "models" / name
        with (directory / "model.safetensors").open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(length))
        end = max(entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__")
        shape = shape_from_config(json.loads((directory / "config.json").read_text()), directory)
        assert parameters("llama", shape).total == end // 4


def test_vision_language_models_are_their_language_model_and_what_is_declared() -> None:
    architecture, shape = MODELS["llava1.5-7b"]
    counts = parameters(architecture, shape)
    assert counts.extra == shape.extra_parameters == 324_487_168
    assert counts.quantized == parameters(*MODELS["llama1-7b"]).quantized


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean mixtral"):
        parameters("mixtrall", MODELS["mixtral-8x7b"][1])


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.shape\.num_experts is null"):
        parameters("mixtral", MODELS["llama2-7b"][1])


@pytest.mark.parametrize(
    ("name", "group_size", "valid"),
    [
        ("llama2-7b", 128, True),  # 11008 = 86 x 128
        ("llama2-13b", 128, True),  # 13824 = 108 x 128
        ("mini-llama", 128, False),  # 704 = 5.5 x 128
        ("mini-llama", 64, True),
        ("deepseek-moe-16b", 128, False),  # 10944 = 85.5 x 128
        ("deepseek-moe-16b", 64, True),
        ("mamba-1.4b", 128, True),
        ("mamba-2.8b", 128, False),  # dt_proj has 160 inputs
        ("mamba-2.8b", 32, True),
    ],
)
def test_a_group_size_must_divide_the_inputs_of_every_linear(name: str, group_size: int, valid: bool) -> None:
    assert fits(name, group_size) is valid


def test_an_impossible_group_size_names_the_linear_and_what_would_do() -> None:
    problem = group_size_problem(*MODELS["mini-llama"], 128)
    assert problem is not None
    assert "704 inputs of mlp.down_proj" in problem
    assert "32, 64, or null" in problem


@pytest.mark.parametrize("group_size", [0, -128])
def test_a_group_size_that_is_not_positive_is_refused(group_size: int) -> None:
    problem = group_size_problem(*MODELS["llama2-7b"], group_size)
    assert problem is not None and "not positive" in problem


@settings(deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 4096))
def test_group_sizes_are_refused_exactly_when_some_input_leaves_a_remainder(name: str, group_size: int) -> None:
    architecture, shape = MODELS[name]
    inputs = [x.in_features for i, _ in block_kinds(architecture, shape) for x in block_linears(architecture, shape, i)]
    assert fits(name, group_size) is all(n % group_size == 0 for n in inputs)


def test_no_group_size_is_always_possible() -> None:
    assert all(group_size_problem(*model, None) is None for model in MODELS.values())


def test_every_architecture_of_the_planner_has_a_shipped_model() -> None:
    assert {architecture for architecture, _ in MODELS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "structure_of", "modality_of"),
    [
        ("llama2-7b", "dense MHA", "text"),
        ("llama3-8b", "dense GQA", "text"),
        ("mixtral-8x7b", "MoE", "text"),
        ("deepseek-moe-16b", "MoE", "text"),
        ("mamba-1.4b", "state space", "text"),
        ("llava1.5-7b", "dense MHA", "vision-language"),
        ("vila1.5-13b", "dense MHA", "vision-language"),
    ],
)
def test_models_are_told_apart_by_structure_and_modality(name: str, structure_of: str, modality_of: str) -> None:
    _, shape = MODELS[name]
    assert (structure(shape), modality(shape)) == (structure_of, modality_of)
