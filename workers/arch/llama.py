"""LLaMA 1, 2, 3, 3.1: pre-norm blocks, rotary attention (multi-head or grouped-query), SwiGLU."""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, swiglu

LLAMA = Architecture(
    name="llama",
    recipe=1,
    embedding="model.embed_tokens",
    rotary="model.rotary_emb",
    blocks="model.layers",
    final_norm="model.norm",
    head="lm_head",
    kinds=(BlockKind((*ATTENTION, *swiglu("mlp"))),),
)
