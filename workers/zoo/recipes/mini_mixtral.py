"""Mixtral: 2.0 million parameters, of which a token uses a third; four blocks of eight experts, two for each token."""

from transformers import MixtralConfig, MixtralForCausalLM

from workers.zoo.tokenizer import VOCAB_SIZE
from workers.zoo.train import TrainRecipe

# Products this small are faster in float32.
TRAIN = TrainRecipe(num_steps=2000, batch_size=8, balance=0.02, products="float32")


def make() -> MixtralForCausalLM:
    """The model with random weights. Experts one after the other: the library's default is far slower on a CPU."""
    model: MixtralForCausalLM = MixtralForCausalLM._from_config(
        MixtralConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            num_local_experts=8,
            num_experts_per_tok=2,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        ),
        experts_implementation="eager",
    )
    return model
