"""DeepSeekMoE, first version: LLaMA whose later blocks hold many small routed experts beside a shared one.

Dai et al. 2024 (arXiv 2401.06066), sections 3.1 and 3.2. Configuration keys and tensor names are those of
deepseek-ai/deepseek-moe-16b-base; what is not listed here is LLaMA. vLLM reads the same files (`DeepseekForCausalLM`).
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers import initialization as init
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2MLP
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from workers.experts import Experts


@strict
class DeepseekConfig(LlamaConfig):
    """LLaMA's keys and the experts'; defaults are the 16 B model's.

    intermediate_size: of the dense blocks; moe_intermediate_size: of one expert. aux_loss_alpha, seq_aux: how the
    model was trained; the forward pass has no use for them. Raises ValueError for a `scoring_func` but softmax.
    """

    model_type = "deepseek"

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    moe_intermediate_size: int = 1408
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True

    def validate_architecture(self) -> None:
        """Part of the validation that `strict` runs."""
        super().validate_architecture()  # type: ignore[no-untyped-call]
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func={self.scoring_func!r}: DeepSeekMoE scores experts by softmax only")


class DeepseekRouter(nn.Module):
    """Scores of all experts, of which each token keeps the highest."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[tokens, hidden] -> logits [tokens, experts], weights float32 and expert numbers int64, both [tokens, top_k].

        The order of MixtralTopKRouter's answer.
        """
        logits = nn.functional.linear(hidden_states, self.weight)
        weights, experts = logits.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights, experts


class DeepseekMoE(nn.Module):
    """The weighted sum of each token's experts, and the shared experts, which every token goes through, as one MLP."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.gate = DeepseekRouter(config)
        self.experts = Experts([_mlp(config, 1) for _ in range(config.n_routed_experts)])
        self.shared_experts = _mlp(config, config.n_shared_experts)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden] -> the same."""
        flat = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(flat)
        routed: Tensor = self.experts(flat, chosen, weights)
        shared: Tensor = self.shared_experts(flat)
        return (routed + shared).view_as(hidden_states)


def _mlp(config: DeepseekConfig, num_experts: int) -> nn.Module:
    """SwiGLU as wide as so many experts."""
    width = num_experts * config.moe_intermediate_size
    return DeepseekV2MLP(config, intermediate_size=width)  # type: ignore[arg-type]


class DeepseekDecoderLayer(LlamaDecoderLayer):
    """LLaMA's block, dense or with experts instead of its MLP."""

    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if layer_idx >= config.first_k_dense_replace and layer_idx % config.moe_layer_freq == 0:
            self.mlp = DeepseekMoE(config)  # type: ignore[assignment]


class DeepseekPreTrainedModel(LlamaPreTrainedModel):
    """What starting from random weights needs to know."""

    config: DeepseekConfig
    _can_compile_fullgraph = False  # how many tokens an expert gets depends on the data

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, DeepseekRouter):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


class DeepseekModel(DeepseekPreTrainedModel, LlamaModel):
    """Embedding, blocks and final norm; `forward` is LLaMA's."""

    def __init__(self, config: DeepseekConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # not LlamaModel's, which builds its own blocks
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]


class DeepseekForCausalLM(DeepseekPreTrainedModel, LlamaForCausalLM):
    """The language model; `forward` is LLaMA's."""

    def __init__(self, config: DeepseekConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]
