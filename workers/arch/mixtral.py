"""Mixtral: LLaMA's attention, and experts behind a router that keeps its 16 bits.

Transformers 5 holds the experts of a block in two parameters; files have a tensor for each linear, under older names.
"""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, decoder_paths, router, swiglu

MIXTRAL = Architecture(
    name="mixtral",
    recipe=1,
    **decoder_paths("model"),
    kinds=(
        BlockKind(
            (*ATTENTION, router("mlp.gate"), *swiglu("mlp.experts.*", prefix="experts.*.")), experts="mlp.experts"
        ),
    ),
    experts="mlp.experts",
    renamed=(
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.experts\.(\d+)\.w1\.", r".experts.\1.gate_proj."),
        (r"\.experts\.(\d+)\.w3\.", r".experts.\1.up_proj."),
        (r"\.experts\.(\d+)\.w2\.", r".experts.\1.down_proj."),
    ),
    refused=(
        (
            r"\.experts\.(gate_up_proj|down_proj)$",
            "the experts of a block are stored in one tensor; load the model and save it again as the hub has it: "
            "save_pretrained(<directory>, save_original_format=True) of Transformers 5",
        ),
    ),
)
