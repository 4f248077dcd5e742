"""Models of every architecture, tiny random ones and those that ship, as their class saves them; requests on them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from conf.schema import UniformScheme
from tests.workers.tiny_requests import (
    NUM_WINDOWS,
    VOCAB_SIZE,
    WINDOW_TOKENS,
    random_windows,
    request_for,
    write_tokenizer,
)
from tests.workers.tiny_vila import vila_config
from tests.workers.zoo.minis import mini_ref, text_tokens
from workers.api import Manifest, ModelRef, QuantizeRequest
from workers.arch import ARCHITECTURES
from workers.export import ordinary, write_dense
from workers.layout import checkpoint_directory
from workers.model_parts import tokenizer_folder
from workers.models import register
from workers.pipeline import quantize
from workers.stream import BlockStream
from workers.zoo import MINIS, zoo_path

ATTENTION: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
EXPERTS: dict[str, Any] = {**ATTENTION, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}
LLAMA_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _llama(**sizes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**ATTENTION, **sizes}))


def _mixtral(**sizes: Any) -> Any:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**EXPERTS, **sizes}))


def _mamba(**sizes: Any) -> Any:
    given: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "state_size": 4, "time_step_rank": 8}
    config = transformers.MambaConfig(**{**given, "num_hidden_layers": 2, "initializer_range": 0.2, **sizes})
    return transformers.MambaForCausalLM(config)


def _llava(**sizes: Any) -> Any:
    tower = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=16,
    )
    text = transformers.LlamaConfig(**{**ATTENTION, **sizes})
    config = transformers.LlavaConfig(text_config=text, vision_config=tower, image_token_index=VOCAB_SIZE - 1)
    return transformers.LlavaForConditionalGeneration(config)


def _vila(**sizes: Any) -> Any:
    from workers.models.vila import VilaForConditionalGeneration

    return VilaForConditionalGeneration(vila_config({**ATTENTION, **sizes}, image_token_index=VOCAB_SIZE - 1))


def _deepseek_moe(**sizes: Any) -> Any:
    from workers.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM

    register()
    given = {**ATTENTION, "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 6}
    return DeepseekForCausalLM(DeepseekConfig(**{**given, "num_experts_per_tok": 3, **sizes}))


MODELS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "llama multi-head": ("llama", _llama, {"num_key_value_heads": 4}),
    "llama grouped-query": ("llama", _llama, {"head_dim": 32}),
    "llama 3.1": ("llama", _llama, {"rope_parameters": LLAMA_3_1}),
    "mixtral": ("mixtral", _mixtral, {}),
    "deepseek_moe": ("deepseek_moe", _deepseek_moe, {}),
    "mamba": ("mamba", _mamba, {}),
    "llava": ("llava", _llava, {}),
    "vila": ("vila", _vila, {}),
}
OF_EVERY_KIND = [name for name in MODELS if name not in ("llama multi-head", "llama 3.1")]
SHIPPED = {mini_ref(name).architecture: name for name in reversed(MINIS)}  # the first mini of each architecture
ARCHITECTURE = {name: kind for name, (kind, _, _) in MODELS.items()}
ARCHITECTURE |= {name: mini_ref(name).architecture for name in MINIS}


def model_of(name: str, directory: Path) -> Path:
    """Where a shipped model lies; a tiny one is written into `directory`."""
    return zoo_path(name) if name in MINIS else write(name, directory)


def windows_of(name: str, count: int, length: int) -> npt.NDArray[np.int64]:
    """Tokens [count, length] that a model can be expected to know: text for those that ship."""
    if name not in MINIS:
        return random_windows(count, length)
    return np.array(text_tokens("calibration")[: count * length]).reshape(count, length)


def write(name: str, directory: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """A model of MODELS in float32 with a tokenizer; its gains are no longer one."""
    _, build, own = MODELS[name]
    torch.manual_seed(seed)
    model = build(**{**own, **sizes})
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.mul_(torch.exp(torch.randn_like(parameter) / 2))
    model.save_pretrained(directory)
    write_tokenizer(tokenizer_folder(directory), VOCAB_SIZE)
    return directory


def ref(name: str, directory: Path) -> ModelRef:
    return ModelRef(name, str(directory), ARCHITECTURE[name], fingerprint="a content hash", directory=str(directory))


def stream_of(name: str, directory: Path) -> BlockStream:
    return BlockStream(ref(name, directory), directory, dtype=torch.float32, device=torch.device("cpu"))


def request(name: str, model: Path, storage: Path, method: str, scheme: UniformScheme, **slots: Any) -> QuantizeRequest:
    """To quantize `model` with a method of `tiny_requests.METHODS`, some of its slots changed."""
    asked = request_for(model, storage, method, scheme, windows=windows_of(name, NUM_WINDOWS, WINDOW_TOKENS))
    return replace(asked, model=ref(name, model), method=replace(asked.method, **slots))


def made(asked: QuantizeRequest) -> tuple[Manifest, Path]:
    """The manifest, and where the packed checkpoint lies."""
    manifest = quantize(asked)
    assert manifest is not None
    return manifest, checkpoint_directory(Path(asked.storage), asked.quantize_key)


def dense(packed: Path, directory: Path) -> Path:
    write_dense(packed, directory, "float32")
    return directory


def load(name: str, directory: Path) -> Any:
    """By the architecture's own class of Transformers, every tensor of the files and no other."""
    register()
    auto = getattr(transformers, ARCHITECTURES[ARCHITECTURE[name]].model_class)
    with ordinary(directory) as whole:
        model, info = auto.from_pretrained(whole, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


@torch.no_grad()
def log_probabilities(model: Any, tokens: Tensor) -> Tensor:
    """Of every token but the first, [n, L - 1]."""
    logits = torch.log_softmax(model(input_ids=tokens).logits[:, :-1], dim=-1)
    return logits.gather(2, tokens[:, 1:, None]).squeeze(2)
