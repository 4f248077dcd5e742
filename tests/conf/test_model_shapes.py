"""The shipped models and clusters: files are what the schema says, sizes give the published parameter counts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.schema import ClusterConf, ModelConf, NodeConf, ShapeConf
from orchestrator.shapes import parameters

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
CLUSTERS = sorted(path.stem for path in (CONF / "cluster").glob("*.yaml"))
SIZED = [name for name in MODELS if name != "hf"]

# Counted from the reference implementations built with these sizes, tied matrices once; VILA as published.
TOTALS = {
    "llama1-7b": 6_738_415_616,
    "llama1-13b": 13_015_864_320,
    "llama1-30b": 32_528_943_616,
    "llama1-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-moe-16b": 16_375_728_128,
    "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600,
    "llava1.5-7b": 7_063_427_072,
    "llava1.5-13b": 13_351_494_656,
    "mini-llama": 3_737_856,
    "mini-gqa-200": 2_004_672,
    "mini-gqa-600": 2_004_672,
    "mini-gqa-1800": 2_004_672,
    "mini-mixtral": 2_036_864,
    "mini-deepseek-moe": 2_006_144,
    "mini-mamba": 2_014_464,
    "mini-llava": 2_007_488,
    "mini-vila": 2_042_240,
}
ROUNDED_TOTALS = {"vila1.5-7b": 7.2e9, "vila1.5-13b": 13.5e9}


def read(group: str, name: str) -> dict[str, Any]:
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    assert content.pop("defaults") == [f"{group}_schema", "_self_"]
    return dict(content)


def model(name: str) -> ModelConf:
    content = read("model", name)
    shape = content.pop("shape", None)
    return ModelConf(**content, shape=ShapeConf(**shape) if shape else None)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_named_after_its_file(name: str) -> None:
    assert model(name).name == name


@pytest.mark.parametrize("name", SIZED)
def test_sizes_have_the_types_of_the_schema(name: str) -> None:
    shape = model(name).shape
    assert shape is not None
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        expected = {"torch_dtype": str, "tie_word_embeddings": bool}.get(field.name, int)
        assert value is None or type(value) is expected, field.name


@pytest.mark.parametrize("name", TOTALS)
def test_sizes_give_the_exact_parameter_count(name: str) -> None:
    conf = model(name)
    assert conf.architecture is not None and conf.shape is not None
    assert parameters(conf.architecture, conf.shape).total == TOTALS[name]


@pytest.mark.parametrize("name", ROUNDED_TOTALS)
def test_sizes_give_the_published_rounded_parameter_count(name: str) -> None:
    conf = model(name)
    assert conf.architecture is not None and conf.shape is not None
    assert parameters(conf.architecture, conf.shape).total == pytest.approx(ROUNDED_TOTALS[name], rel=0.005)


def test_every_model_with_sizes_has_a_known_count() -> None:
    assert sorted(SIZED) == sorted({**TOTALS, **ROUNDED_TOTALS})


@pytest.mark.parametrize("name", [name for name in SIZED if "mamba" not in name])
def test_heads_fill_the_hidden_size(name: str) -> None:
    shape = model(name).shape
    assert shape is not None and shape.num_attention_heads and shape.head_dim and shape.num_key_value_heads
    assert shape.num_attention_heads * shape.head_dim == shape.hidden_size
    assert shape.num_attention_heads % shape.num_key_value_heads == 0


def test_every_model_of_the_paper_is_there() -> None:
    paper = yaml.safe_load((CONF / "experiment" / "paper.yaml").read_text(encoding="utf-8"))
    assert set(paper["axes"]["model"]) <= set(SIZED)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_named_after_its_file_and_declares_numbers(name: str) -> None:
    content = read("cluster", name)
    nodes = [NodeConf(**node) for node in content.pop("nodes", None) or []]
    cluster = ClusterConf(**content, nodes=nodes or None)
    assert cluster.name == name
    for node in nodes:
        for field in dataclasses.fields(node):
            # YAML reads 3.12e14 as text: an exponent needs its sign
            assert isinstance(getattr(node, field.name), int | float), field.name
        assert node.num_gpus > 0 and node.flops > 1e13 and node.bandwidth > 1e11
