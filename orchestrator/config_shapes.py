"""From a Hugging Face config.json to the sizes of a model: what each kind of model calls them, and what it leaves out.

Pure. Names are those of the checkpoints' own config.json files; usual values those of transformers' configuration
classes, which a config.json may leave out.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.schema import ShapeConf
from orchestrator.engine_choice import DTYPES
from orchestrator.shapes import ARCHITECTURES

NO_SIZES = ("torch_dtype", "tie_word_embeddings")
MAY_BE_ZERO = ("first_dense_layers", "extra_parameters")

Config = dict[str, Any]

MODEL_TYPES = {"deepseek": "deepseek_moe", "llava_llama": "vila"}
"""model_type of a config.json -> architecture, where they differ."""

_SIZE_NAMES = {  # the field of ShapeConf -> what else it is called
    "num_experts": ("num_local_experts", "n_routed_experts"),
    "num_shared_experts": ("n_shared_experts",),
    "first_dense_layers": ("first_k_dense_replace",),
}
_TEXT_PARTS = ("text_config", "llm_cfg")
_VISION_PARTS = ("vision_config", "vision_tower_cfg")
# A vision-language model writes of its language model what differs from transformers' LlamaConfig: LLaVA-1.5-7B nothing
# but the vocabulary and the positions.
_LLAMA_SIZES: Config = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_MAMBA_SIZES: Config = {
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": "auto",
    "tie_word_embeddings": True,
}
_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"


def architecture_of(config: Config) -> str | None:
    """The architecture that a config.json's model_type stands for; null for one that is not known."""
    name = config.get("model_type")
    if not isinstance(name, str):
        return None
    name = MODEL_TYPES.get(name, name)
    return name if name in ARCHITECTURES else None


def shape_from_config(config: Config, where: Path) -> ShapeConf:
    """Sizes out of a config.json. Raises ConfigError naming a size that is missing or no size."""
    text = _text_part(config, where)
    known = {f.name: value for f in dataclasses.fields(ShapeConf) if (value := _size(text, f.name)) is not None}
    dtype = config.get("torch_dtype") or config.get("dtype") or text.get("torch_dtype") or text.get("dtype")
    known["torch_dtype"] = dtype = dtype or "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"{where}/config.json: dtype {json.dumps(dtype)} is none of {', '.join(DTYPES)}")
    for required in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if required not in known:
            raise ConfigError(f"{where}/config.json: no `{required}`")
    known.setdefault("max_position_embeddings", 2048)
    shape = ShapeConf(**known)
    if problem := size_problem(shape) or _heads_problem(shape):
        raise ConfigError(f"{where}/config.json: {problem}")
    shape = dataclasses.replace(shape, extra_parameters=_vision_parameters(config, shape.hidden_size, where))
    heads = shape.num_attention_heads
    if heads is None:
        return shape
    return dataclasses.replace(
        shape,
        num_key_value_heads=shape.num_key_value_heads or heads,
        head_dim=shape.head_dim or shape.hidden_size // heads,
    )


def size_problem(shape: ShapeConf) -> str | None:
    """What is no size, or null."""
    for field in dataclasses.fields(shape):
        value, least = getattr(shape, field.name), 0 if field.name in MAY_BE_ZERO else 1
        if field.name not in NO_SIZES and value is not None and not _is_size(value, least):
            return f"{field.name}={value!r} is not a whole number of at least {least}"
    return None


def _is_size(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _heads_problem(shape: ShapeConf) -> str | None:
    """Why heads do not divide what they are made of, or null."""
    heads, groups = shape.num_attention_heads, shape.num_key_value_heads
    if not isinstance(shape.tie_word_embeddings, bool):
        return f"tie_word_embeddings={shape.tie_word_embeddings!r} is neither true nor false"
    if heads is not None and shape.head_dim is None and shape.hidden_size % heads:
        return f"num_attention_heads={heads} does not divide hidden_size={shape.hidden_size}, and there is no head_dim"
    if heads is not None and groups is not None and heads % groups:
        return f"num_key_value_heads={groups} does not divide num_attention_heads={heads}"
    return None


def _size(text: Config, field: str) -> Any:
    return next((text[name] for name in (field, *_SIZE_NAMES.get(field, ())) if text.get(name) is not None), None)


def _text_part(config: Config, where: Path) -> Config:
    """The language model's part of a config, usual values filled in."""
    name = next((part for part in _TEXT_PARTS if part in config), None)
    text = config if name is None else config[name]
    if not isinstance(text, dict):
        raise ConfigError(f"{where}/config.json: `{name}` is {json.dumps(text)[:80]}, not an object with sizes")
    given = {key: value for key, value in text.items() if value is not None}
    if name is not None and given.get("model_type", "llama") == "llama":
        return _LLAMA_SIZES | given
    return _mamba_part(given) if given.get("model_type") == "mamba" else given


def _mamba_part(given: Config) -> Config:
    text = _MAMBA_SIZES | given
    hidden, expand = text.get("hidden_size", 0), text["expand"]
    if _is_size(hidden):
        if _is_size(expand):
            text.setdefault("intermediate_size", expand * hidden)
        if text["time_step_rank"] == "auto":
            text["time_step_rank"] = -(-hidden // 16)
    return text


# --- vision tower and projector --------------------------------------------------------------------------------------


def _vision_parameters(config: Config, text_hidden: int, where: Path) -> int:
    """Parameters of the tower and the projector; 0 for a language model. Raises ConfigError for a tower not known."""
    name = next((part for part in _VISION_PARTS if part in config), None)
    if name is None:
        return 0
    tower = config[name]
    kind = tower.get("model_type") if isinstance(tower, dict) else tower
    if kind not in (_CLIP, _SIGLIP):
        raise ConfigError(
            f"{where}/config.json: the parameters of {name}.model_type={json.dumps(kind)[:80]} cannot be counted; "
            f"known: {_CLIP}, {_SIGLIP}. Give the sizes: start from a model of its size: model=llava1.5-7b"
        )
    for size in ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size"):
        if not _is_size(tower.get(size)):
            raise ConfigError(
                f"{where}/config.json: {name}.{size}={tower.get(size)!r} is not a whole number of at least 1"
            )
    hidden: int = tower["hidden_size"]
    if architecture_of(config) == "vila":
        # four neighbouring patches side by side, normed
        return int(_siglip(tower) + 2 * 4 * hidden + _projector(4 * hidden, text_hidden))
    return (_clip if kind == _CLIP else _siglip)(tower) + _projector(hidden, text_hidden)


def _projector(inputs: int, outputs: int) -> int:
    """Two linears with bias."""
    return (inputs + 1) * outputs + (outputs + 1) * outputs


def _encoder(tower: Config) -> int:
    """Blocks with two norms, four square linears and two of the MLP, all with bias, and a norm behind the last."""
    hidden, inner = tower["hidden_size"], tower["intermediate_size"]
    block = 4 * hidden + 4 * (hidden + 1) * hidden + 2 * inner * hidden + inner + hidden
    return int(tower["num_hidden_layers"] * block + 2 * hidden)


def _patches(tower: Config) -> int:
    return int((tower["image_size"] // tower["patch_size"]) ** 2)


def _clip(tower: Config) -> int:
    """Radford et al. 2021: patches without bias, a class token, a norm before the blocks too."""
    hidden: int = tower["hidden_size"]
    pixels = 3 * tower["patch_size"] ** 2
    return int(pixels * hidden + hidden + (_patches(tower) + 1) * hidden + 2 * hidden + _encoder(tower))


def _siglip(tower: Config) -> int:
    """Zhai et al. 2023: patches with bias, no class token; attention pooling with a probe, norm and MLP."""
    hidden, inner = tower["hidden_size"], tower["intermediate_size"]
    pixels = 3 * tower["patch_size"] ** 2
    pooling = hidden + 4 * (hidden + 1) * hidden + 2 * hidden + 2 * inner * hidden + inner + hidden
    return int((pixels + 1) * hidden + _patches(tower) * hidden + _encoder(tower) + pooling)
