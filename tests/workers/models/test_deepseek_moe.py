import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from workers.models import register
from workers.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM, DeepseekMoE

NUM_EXPERTS, TOP_K, HIDDEN = 8, 3, 16


def tiny_config(**changes: Any) -> DeepseekConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": HIDDEN,
        "intermediate_size": 40,
        "moe_intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    return DeepseekConfig(**{**sizes, **changes})


def tiny_model(**changes: Any) -> DeepseekForCausalLM:
    torch.manual_seed(0)
    return DeepseekForCausalLM(tiny_config(**changes))


def tokens(count: int, length: int) -> Tensor:
    return torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(1))


def moe_of(model: DeepseekForCausalLM, block: int = 1) -> DeepseekMoE:
    moe = model.model.layers[block].mlp
    assert isinstance(moe, DeepseekMoE)
    return moe


def swiglu(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate, up, down = (state[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (torch.sigmoid(x @ gate.T) * (x @ gate.T) * (x @ up.T)) @ down.T


def by_hand(state: dict[str, Tensor], x: Tensor, normalise: bool) -> Tensor:
    """Every expert computes every token; the weights [tokens, experts] of those not chosen are zero."""
    scores = torch.exp(x @ state["gate.weight"].T)
    scores = scores / scores.sum(dim=1, keepdim=True)
    smallest_kept = scores.sort(dim=1, descending=True).values[:, TOP_K - 1 : TOP_K]
    weights = torch.where(scores >= smallest_kept, scores, 0)
    if normalise:
        weights = weights / weights.sum(dim=1, keepdim=True)
    routed = sum(weights[:, i, None] * swiglu(state, f"experts.{i}", x) for i in range(NUM_EXPERTS))
    return routed + swiglu(state, "shared_experts", x)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_layer_is_the_weighted_sum_of_the_chosen_experts_and_the_shared_ones(normalise: bool) -> None:
    moe = moe_of(tiny_model(norm_topk_prob=normalise)).double()
    x = torch.randn(2, 9, HIDDEN, dtype=torch.float64)
    expected = by_hand(dict(moe.state_dict()), x.flatten(0, 1), normalise).view_as(x)
    # The router's softmax is float32, whatever the model's dtype.
    torch.testing.assert_close(moe(x), expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_router_and_shared_experts_and_exactly_the_experts_with_tokens() -> None:
    moe = moe_of(tiny_model())
    x = torch.randn(2, HIDDEN)
    chosen = set(moe.gate(x)[2].flatten().tolist())
    assert 0 < len(chosen) < NUM_EXPERTS
    moe(x).square().sum().backward()
    reached = {name for name, weight in moe.named_parameters() if weight.grad is not None and weight.grad.any()}
    parts = ("gate_proj", "up_proj", "down_proj")
    inside = {
        f"{name}.{part}.weight" for name in ("shared_experts", *(f"experts.{i}" for i in chosen)) for part in parts
    }
    assert reached == {"gate.weight", *inside}


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    moe = moe_of(tiny_model()).double()
    x = torch.randn(3, HIDDEN, dtype=torch.float64, requires_grad=True)
    # Constant routing: the router's float32 softmax is too coarse for finite differences.
    logits, weights, experts = (part.detach() for part in moe.gate(x))
    monkeypatch.setattr(moe.gate, "forward", lambda _: (logits, weights.double(), experts))
    assert torch.autograd.gradcheck(moe, (x,))


def test_without_experts_the_model_is_llama() -> None:
    model = tiny_model(first_k_dense_replace=3)
    llama = LlamaForCausalLM(model.config)
    llama.load_state_dict(model.state_dict())
    x = tokens(2, 16)
    torch.testing.assert_close(model(x).logits, llama(x).logits, rtol=0, atol=0)


def test_which_blocks_hold_experts() -> None:
    model = tiny_model(num_hidden_layers=6, first_k_dense_replace=2, moe_layer_freq=2)
    assert [isinstance(layer.mlp, DeepseekMoE) for layer in model.model.layers] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]


def test_a_saved_model_comes_back_through_the_auto_classes(tmp_path: Path) -> None:
    register()
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("deepseek", ["DeepseekForCausalLM"])
    answer: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = answer
    assert type(loaded) is DeepseekForCausalLM
    assert not info["missing_keys"] and not info["unexpected_keys"]
    x = tokens(2, 16)
    assert torch.equal(loaded(x).logits, model(x).logits)


def test_stored_names_are_those_of_the_hub(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert stored == hub_names(num_blocks=3, num_experts=NUM_EXPERTS)


def hub_names(num_blocks: int, num_experts: int) -> set[str]:
    """Tensor names of deepseek-ai/deepseek-moe-16b-base, as its index lists them."""
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for block in range(num_blocks):
        prefix = f"model.layers.{block}"
        names |= {f"{prefix}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
        names |= {f"{prefix}.self_attn.{part}_proj.weight" for part in "qkvo"}
        mlps = ["mlp"] if block == 0 else ["mlp.shared_experts", *(f"mlp.experts.{i}" for i in range(num_experts))]
        names |= {f"{prefix}.{mlp}.{part}_proj.weight" for mlp in mlps for part in ("gate", "up", "down")}
        if block > 0:
            names.add(f"{prefix}.mlp.gate.weight")
    return names


# config.json of deepseek-ai/deepseek-moe-16b-base, less its remote code.
HUB_CONFIG = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 4096,
    "model_type": "deepseek",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 102400,
}


def test_the_hub_s_configuration_gives_the_16_b_model(tmp_path: Path) -> None:
    register()
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.bfloat16)
    assert set(model.state_dict()) == hub_names(num_blocks=28, num_experts=64)
    assert model.num_parameters() == 16_375_728_128  # 16.4 billion, as published
    assert list(model.model.layers[0].mlp.down_proj.weight.shape) == [2048, 10944]
    assert list(model.model.layers[27].mlp.shared_experts.down_proj.weight.shape) == [2048, 2816]
    assert model.model.rotary_emb.config.rope_parameters["rope_theta"] == 10000


def test_another_scoring_function_is_refused() -> None:
    with pytest.raises((ValueError, StrictDataclassError), match="softmax only"):
        tiny_config(scoring_func="sigmoid")
