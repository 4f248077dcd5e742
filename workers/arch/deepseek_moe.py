"""DeepSeekMoE 16B, first version: a first block like LLaMA's, then many small experts beside shared ones.

The modelling class is ours (workers.models.deepseek_moe); it has the names of the files, and linears for each expert.
"""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, decoder_paths, router, swiglu

DEEPSEEK_MOE = Architecture(
    name="deepseek_moe",
    recipe=1,
    **decoder_paths("model"),
    kinds=(
        BlockKind((*ATTENTION, *swiglu("mlp")), marker="mlp.gate_proj"),
        BlockKind(
            (
                *ATTENTION,
                router("mlp.gate"),
                *swiglu("mlp.experts.*", prefix="experts.*."),
                *swiglu("mlp.shared_experts", prefix="shared."),
            ),
            marker="mlp.experts",
            experts="mlp.experts",
        ),
    ),
)
