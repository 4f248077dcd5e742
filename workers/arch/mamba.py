"""Mamba 1 as Transformers has it (the `-hf` checkpoints): a selective state space in place of attention and MLP.

Files of the original code have other names and a config.json without a model_type; `ptqbench` says so of them. The
weight of dt_proj is used without a call: its input is what x_proj makes first. A turn of the residual stream folds into
in_proj and out_proj; a scale folds before in_proj, and from x_proj's first rows into dt_proj. Scales of the pairs B, C
would only change rows of x_proj, which a grid for each row or group of it follows, so that rounding stays the same.
"""

from workers.arch.architecture import Architecture, BlockKind, LinearGroup

MAMBA = Architecture(
    name="mamba",
    recipe=2,
    attention=None,
    embedding="backbone.embeddings",
    rotary=None,
    blocks="backbone.layers",
    final_norm="backbone.norm_f",
    head="lm_head",
    kinds=(
        BlockKind(
            (
                LinearGroup("in", ("mixer.in_proj",), prev_op="norm", inspect="mixer.in_proj", residual="read"),
                LinearGroup(
                    "x", ("mixer.x_proj",), prev_op=None, inspect="mixer.x_proj", residual=None, inner="intermediate"
                ),
                LinearGroup(
                    "dt",
                    ("mixer.dt_proj",),
                    source="mixer.x_proj",
                    prev_op="mixer.x_proj",
                    inspect="mixer.dt_proj",
                    residual=None,
                ),
                LinearGroup(
                    "out",
                    ("mixer.out_proj",),
                    prev_op=None,
                    inspect="mixer.out_proj",
                    residual="write",
                    inner="intermediate",
                ),
            )
        ),
    ),
    renamed=((r"^backbone\.embedding\.", "backbone.embeddings."),),
)
