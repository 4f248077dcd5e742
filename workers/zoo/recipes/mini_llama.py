"""LLaMA: 3.7 million parameters; intermediate_size is no multiple of 128 on purpose: groups of 128 do not fit all."""

from transformers import LlamaConfig, LlamaForCausalLM

from workers.zoo.tokenizer import VOCAB_SIZE
from workers.zoo.train import TrainRecipe

TRAIN = TrainRecipe(num_steps=900)


def make() -> LlamaForCausalLM:
    """The model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
