"""LLaVA 1.5 as Transformers has it: LLaMA behind an image tower and a projector, which keep their bits."""

from workers.arch.architecture import Architecture, BlockKind
from workers.arch.parts import ATTENTION, decoder_paths, swiglu

LLAVA = Architecture(
    name="llava",
    recipe=2,
    model_class="AutoModelForImageTextToText",
    **decoder_paths("model.language_model"),
    kinds=(BlockKind((*ATTENTION, *swiglu("mlp"))),),
    renamed=(
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^vision_tower\.(vision_model\.)?", "model.vision_tower."),
        (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    ),
    tower=("model.vision_tower", "model.multi_modal_projector"),
    image_writer="model.multi_modal_projector.linear_2",
)
