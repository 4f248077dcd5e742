"""A random VILA with tokenizer and image processor, in the three folders of its hub, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.workers.tiny_llava import CHAT, SPECIAL
from workers.models import register
from workers.models.vila import VilaConfig, VilaForConditionalGeneration
from workers.models.vila_processor import VilaProcessor

VOCAB_SIZE = 64
IMAGE_SIZE, PATCH_SIZE, PLACES = 20, 4, 9  # five patches a side, an odd grid
TOWER: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}


def vila_config(text: dict[str, Any], **changes: Any) -> VilaConfig:
    register()
    return VilaConfig(
        llm_cfg={"model_type": "llama", **text},
        vision_tower_cfg=TOWER,
        mm_projector_cfg={"mm_projector_type": "mlp_downsample"},
        **changes,
    )


def write_vila(directory: Path, *, seed: int = 0, head_dim: int = 16) -> Path:
    """Two blocks, nine places an image, words t3 to t63, in float32."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "head_dim": head_dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
    }
    model = VilaForConditionalGeneration(vila_config(text, image_token_index=SPECIAL.index("<image>")))
    with torch.no_grad():  # what nothing has trained is small, and pictures would not matter
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_()
    model.save_pretrained(directory)
    processor().save_pretrained(directory)
    return directory


def processor() -> VilaProcessor:
    """With nine places an image and token 1 in each."""
    words = [*SPECIAL, *(f"t{i}" for i in range(len(SPECIAL), VOCAB_SIZE))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    pixels = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return VilaProcessor(tokenizer, pixels, CHAT, SPECIAL.index("<image>"), PLACES)
