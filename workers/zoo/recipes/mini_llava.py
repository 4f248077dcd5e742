"""LLaVA: 2.0 million parameters; a LLaMA of five blocks behind a CLIP tower of three, which learns to see, then rests.

An image of 48 by 48 pixels becomes 9 tokens. Features are those of the tower's last block (LLaVA takes the one before
it), so that no block is there for nothing.
"""

from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from workers.zoo.images.scenes import SIZE
from workers.zoo.tokenizer import VOCAB_SIZE, fast_tokenizer
from workers.zoo.train import TrainRecipe

PATCH_SIZE = 16
# A question follows the image at once, the answer follows the question after a space, and <|endoftext|> closes it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}<|endoftext|>{% endif %}"
    "{% endfor %}"
)

TRAIN = TrainRecipe(
    num_steps=2000,
    batch_size=4,
    sight_steps=200,
    image_batch_size=4,
    image_share=0.7,
    hidden_rate=0.01,
    embedding_rate=5e-3,
    head_rate=2e-3,
    products="float32",
)


def language() -> LlamaConfig:
    """The language model, one token wider than the tokenizer: what stands for images is no text."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE + 1,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def make() -> LlavaForConditionalGeneration:
    """The model with random weights."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH_SIZE,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=language(),
            image_token_index=VOCAB_SIZE,
            image_seq_length=(SIZE // PATCH_SIZE) ** 2,
            vision_feature_layer=-1,
        )
    )


def processor(tokenizer: Tokenizer, max_length: int) -> Any:
    """What prepares images and prompts; the tokenizer is that of all mini models, and IMAGE its one more token."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer=fast_tokenizer(tokenizer, max_length, sees=True),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
