"""VILA 1.5: LLaMA behind a SigLIP tower and a downsampling projector, which keep their bits.

Its files are those of three models, each with names of its own (workers.model_parts); no two parts use one name.
"""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, swiglu

VILA = Architecture(
    name="vila",
    recipe=1,
    model_class="AutoModelForImageTextToText",
    embedding="model.language_model.embed_tokens",
    rotary="model.language_model.rotary_emb",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    head="lm_head",
    kinds=(BlockKind((*ATTENTION, *swiglu("mlp"))),),
    writers=("model.multi_modal_projector.layers.4",),
    renamed=(
        (r"^model\.", "model.language_model."),
        (r"^vision_model\.", "model.vision_tower."),
        (r"^layers\.", "model.multi_modal_projector.layers."),
    ),
)
