"""LLaMA 1, 2, 3, 3.1: pre-norm blocks, rotary attention (multi-head or grouped-query), SwiGLU."""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, decoder_paths, swiglu

LLAMA = Architecture(
    name="llama",
    recipe=1,
    **decoder_paths("model"),
    kinds=(BlockKind((*ATTENTION, *swiglu("mlp"))),),
)
