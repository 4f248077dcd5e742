"""LLaMA 1, 2, 3, 3.1: pre-norm blocks, rotary attention (multi-head or grouped-query), SwiGLU."""

from workers.arch.architecture import Architecture, LinearGroup

LLAMA = Architecture(
    name="llama",
    recipe=1,
    model_class="LlamaForCausalLM",
    embedding="model.embed_tokens",
    rotary="model.rotary_emb",
    blocks="model.layers",
    final_norm="model.norm",
    head="lm_head",
    groups=(
        LinearGroup(
            "qkv",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            prev_op="input_layernorm",
            inspect="self_attn",
            residual="read",
            scores=("self_attn.q_proj", "self_attn.k_proj"),
        ),
        LinearGroup(
            "o",
            ("self_attn.o_proj",),
            prev_op="self_attn.v_proj",
            inspect="self_attn.o_proj",
            residual="write",
            inner="heads",
        ),
        LinearGroup(
            "gate_up",
            ("mlp.gate_proj", "mlp.up_proj"),
            prev_op="post_attention_layernorm",
            inspect="mlp",
            residual="read",
        ),
        LinearGroup(
            "down",
            ("mlp.down_proj",),
            prev_op="mlp.up_proj",
            inspect="mlp.down_proj",
            residual="write",
            inner="intermediate",
        ),
    ),
)
