"""VILA: 2.0 million parameters; mini_llava's LLaMA behind a SigLIP tower of three blocks and VILA's projector.

An image is stretched to 45 by 45 pixels, of which 9 by 9 make a patch: a grid of five, odd as the published one of 27,
becomes 9 places. Features are those of the tower's last block (VILA takes the one before it), so that no block is there
for nothing; its pooling head is, as in the published tower, and nothing trains it.
"""

from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from workers.models.vila import PROJECTOR, SIGLIP, VilaConfig, VilaForConditionalGeneration, image_tokens
from workers.models.vila_processor import VilaProcessor
from workers.zoo.recipes import mini_llava
from workers.zoo.tokenizer import VOCAB_SIZE, fast_tokenizer

TOWER: dict[str, Any] = {
    "model_type": SIGLIP,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 45,
    "patch_size": 9,
}
TRAIN = replace(mini_llava.TRAIN, image_share=0.5)


def config() -> VilaConfig:
    """Of the model."""
    return VilaConfig(
        llm_cfg=mini_llava.language().to_dict(),
        vision_tower_cfg=TOWER,
        mm_projector_cfg={"mm_projector_type": PROJECTOR},
        mm_vision_select_layer=-1,
        image_token_index=VOCAB_SIZE,
    )


def make() -> VilaForConditionalGeneration:
    """The model with random weights."""
    return VilaForConditionalGeneration(config())


def processor(tokenizer: Tokenizer, max_length: int) -> VilaProcessor:
    """What prepares images and prompts, with the tokenizer of all mini models and mini_llava's chat template."""
    pixels = SiglipImageProcessorPil(size={"height": TOWER["image_size"], "width": TOWER["image_size"]})
    places = image_tokens(config().vision_config)
    return VilaProcessor(fast_tokenizer(tokenizer, max_length), pixels, mini_llava.CHAT_TEMPLATE, VOCAB_SIZE, places)
