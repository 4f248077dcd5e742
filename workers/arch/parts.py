"""What many architectures have: LLaMA's names of modules, causal attention, a SwiGLU."""

from typing import TypedDict

from workers.arch.architecture import LinearGroup


class DecoderPaths(TypedDict):
    """Fields of `Architecture` that say where a causal language model has its modules."""

    embedding: str
    rotary: str
    blocks: str
    final_norm: str
    head: str


def decoder_paths(path: str) -> DecoderPaths:
    """Modules as LLaMA names them. path: of the decoder; the head stands outside it."""
    return DecoderPaths(
        embedding=f"{path}.embed_tokens",
        rotary=f"{path}.rotary_emb",
        blocks=f"{path}.layers",
        final_norm=f"{path}.norm",
        head="lm_head",
    )


ATTENTION = (
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
)


def swiglu(path: str, *, prefix: str = "", inspect: str = "mlp") -> tuple[LinearGroup, LinearGroup]:
    """gate and up behind the block's second norm, and down. path: of the module that has the three.

    prefix: of the groups' names. inspect: the module whose output is compared, which for experts is all of them.
    """
    return (
        LinearGroup(
            f"{prefix}gate_up",
            (f"{path}.gate_proj", f"{path}.up_proj"),
            prev_op="post_attention_layernorm",
            inspect=inspect,
            residual="read",
        ),
        LinearGroup(
            f"{prefix}down",
            (f"{path}.down_proj",),
            prev_op=f"{path}.up_proj",
            inspect=f"{path}.down_proj",
            residual="write",
            inner="intermediate",
        ),
    )


def router(path: str) -> LinearGroup:
    """What picks the experts: a weight that reads what they read, and keeps its bits."""
    return LinearGroup(
        "router",
        (),
        kept=(path,),
        prev_op="post_attention_layernorm",
        inspect="mlp",
        residual="read",
    )
