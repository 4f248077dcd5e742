"""Groups that many architectures have: causal attention, and a SwiGLU."""

from workers.arch.architecture import LinearGroup

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
