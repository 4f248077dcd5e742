"""LLaMA with grouped-query attention, 2.0 million parameters, at three training budgets; three query heads share a key.

The budgets differ in the number of steps and in nothing else, so that what quantization costs can be compared between a
model that has hardly been trained and one that has been trained well. Three of mini_llama would take too much room.
"""

from dataclasses import replace

from transformers import LlamaConfig, LlamaForCausalLM

from workers.zoo.tokenizer import VOCAB_SIZE
from workers.zoo.train import TrainRecipe

# Products this small are faster in float32.
_TRAIN = TrainRecipe(batch_size=8, products="float32")
BUDGETS = {f"mini_gqa_{steps}": replace(_TRAIN, num_steps=steps) for steps in (200, 600, 1800)}


def make() -> LlamaForCausalLM:
    """The model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            intermediate_size=528,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
