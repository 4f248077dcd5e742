"""VILA 1.5: LLaMA behind a SigLIP tower and a downsampling projector, which keep their bits.

Its files are those of three models, each with names of its own (workers.model_parts); no two parts use one name.
"""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, decoder_paths, swiglu

VILA = Architecture(
    name="vila",
    recipe=1,
    model_class="AutoModelForImageTextToText",
    **decoder_paths("model.language_model"),
    kinds=(BlockKind((*ATTENTION, *swiglu("mlp"))),),
    renamed=(
        (r"^model\.", "model.language_model."),
        (r"^vision_model\.", "model.vision_tower."),
        (r"^layers\.", "model.multi_modal_projector.layers."),
    ),
    tower=("model.vision_tower", "model.multi_modal_projector"),
    image_writer="model.multi_modal_projector.layers.4",
)
