"""Mamba: 2.0 million parameters, head and embedding tied; four blocks of 512 channels with 16 states each."""

from transformers import MambaConfig, MambaForCausalLM

from workers.zoo.tokenizer import VOCAB_SIZE
from workers.zoo.train import TrainRecipe

# The embedding is the head too, and learns at the head's rate.
TRAIN = TrainRecipe(num_steps=1200, batch_size=8, embedding_rate=4e-3, products="float32")


def make() -> MambaForCausalLM:
    """The model with random weights."""
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=256,
            num_hidden_layers=4,
            state_size=16,
            conv_kernel=4,
            expand=2,
            time_step_rank=16,
            initializer_range=0.02,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
    )
