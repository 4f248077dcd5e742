"""A random LLaVA with its processor, made on the spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SPECIAL = ("<unk>", "<image>", "</s>")
VOCAB_SIZE = 64
IMAGE_SIZE, PATCH_SIZE = 28, 14
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def write_llava(directory: Path, *, seed: int = 0, head_dim: int = 16) -> Path:
    """Two blocks and a tower of two, four patches an image, words t3 to t63, in float32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llava",
        text_config={
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "head_dim": head_dim,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "initializer_range": 0.5,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        image_token_index=SPECIAL.index("<image>"),
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    write_processor(directory)
    return directory


def write_processor(directory: Path, chat_template: str | None = CHAT) -> None:
    words = [*SPECIAL, *(f"t{i}" for i in range(len(SPECIAL), VOCAB_SIZE))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<image>"],
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(directory)
