"""config.json files as the hub's checkpoints have them, and the parameters counted from them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from conf.errors import ConfigError
from conf.schema import ShapeConf
from orchestrator.config_shapes import architecture_of, shape_from_config
from orchestrator.shapes import parameters

MODELS = Path(__file__).parents[2] / "conf" / "model"
LLAVA = {
    "model_type": "llava",
    "torch_dtype": "float16",
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
# What the checkpoints' config.json files say of sizes.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama2-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "max_position_embeddings": 4096,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 32000,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    },
    "deepseek-moe-16b": {
        "model_type": "deepseek",
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 1408,
        "moe_layer_freq": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
    "mamba-2.8b": {
        "model_type": "mamba",
        "conv_kernel": 4,
        "expand": 2,
        "hidden_size": 2560,
        "num_hidden_layers": 64,
        "state_size": 16,
        "time_step_rank": 160,
        "torch_dtype": "float32",
        "vocab_size": 50280,
    },
    "mamba-1.4b": {
        "model_type": "mamba",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "time_step_rank": "auto",
        "torch_dtype": "float32",
        "vocab_size": 50280,
    },
    "llava1.5-7b": LLAVA,
    "llava1.5-13b": LLAVA
    | {
        "text_config": {
            **LLAVA["text_config"],  # type: ignore[dict-item]
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_attention_heads": 40,
            "num_hidden_layers": 40,
            "num_key_value_heads": 40,
        }
    },
    "vila1.5-7b": {
        "model_type": "llava_llama",
        "llm_cfg": {"model_type": "llama", "max_position_embeddings": 4096, "torch_dtype": "bfloat16"},
        "vision_tower_cfg": SIGLIP,
        "mm_projector_cfg": {"mm_projector_type": "mlp_downsample"},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_sizes_that_the_shipped_model_has(name: str) -> None:
    shipped = yaml.safe_load((MODELS / f"{name}.yaml").read_text())
    assert architecture_of(CONFIGS[name]) == shipped["architecture"]
    assert shape_from_config(CONFIGS[name], Path("x")) == ShapeConf(**shipped["shape"])


TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 96},
    "mixtral": {"num_key_value_heads": 2, "intermediate_size": 96, "num_local_experts": 3},
    "mamba": {"expand": 3, "state_size": 4, "conv_kernel": 3, "time_step_rank": 5},
}


@pytest.mark.parametrize("kind", TINY)
def test_parameters_are_those_of_transformers(kind: str) -> None:
    """Of a model built with these sizes; tied matrices once."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128}
    if kind == "mamba":
        del sizes["num_attention_heads"]
    config = AutoConfig.for_model(kind, **sizes, **TINY[kind])
    model = AutoModelForCausalLM.from_config(config)
    assert counted(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_parameters_of_tower_and_projector_are_those_of_transformers(tower: str) -> None:
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    config = AutoConfig.for_model(
        "llava",
        text_config={"model_type": "llama", "vocab_size": 128, **text},
        vision_config={"model_type": tower, "image_size": 30, "patch_size": 7, **vision},
    )
    model = AutoModelForImageTextToText.from_config(config)
    assert counted(config) == sum(p.numel() for p in model.parameters())


def counted(config: PreTrainedConfig) -> int:
    written = config.to_dict()
    architecture = architecture_of(written)
    assert architecture is not None
    return parameters(architecture, shape_from_config(written, Path("x"))).total


def test_sizes_that_a_config_leaves_out_have_their_usual_values() -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "num_attention_heads": 4}
    shape = shape_from_config(config, Path("x"))
    assert (shape.num_key_value_heads, shape.head_dim, shape.max_position_embeddings) == (4, 16, 2048)
    assert shape.torch_dtype == "float32"


def test_a_dtype_is_read_under_either_name() -> None:
    for name in ("dtype", "torch_dtype"):
        config = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, name: "bfloat16"}
        assert shape_from_config(config, Path("x")).torch_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"text_config": "llm"}, '`text_config` is "llm", not an object'),
        ({"text_config": {}, "vision_config": {"model_type": "dinov2"}}, 'vision_config.model_type="dinov2" cannot be'),
        ({"llm_cfg": {}, "vision_tower_cfg": "vision_tower"}, 'vision_tower_cfg.model_type="vision_tower" cannot be'),
        (
            LLAVA | {"vision_config": {"model_type": "clip_vision_model"}},
            "vision_config.hidden_size=None is not a whole",
        ),
        (
            {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 8, "time_step_rank": "x"},
            "time_step_rank='x' is not a whole number",
        ),
    ],
)
def test_what_cannot_be_counted_is_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        shape_from_config(config, Path("x"))
    assert str(refused.value).startswith("x/config.json: ") and said in str(refused.value)


@pytest.mark.parametrize("model_type", [None, 3, "bert", ["llama"]])
def test_an_unknown_kind_of_model_has_no_architecture(model_type: Any) -> None:
    assert architecture_of({"model_type": model_type}) is None
