"""DeepSeekMoE: 2.0 million parameters; one dense block, then three of sixteen small experts, four for each token."""

from workers.models.deepseek_moe import DeepseekConfig, DeepseekForCausalLM
from workers.zoo.tokenizer import VOCAB_SIZE
from workers.zoo.train import TrainRecipe

# Products this small are faster in float32.
TRAIN = TrainRecipe(num_steps=2000, batch_size=8, balance=0.02, products="float32")


def make() -> DeepseekForCausalLM:
    """The model with random weights. Two shared experts, as wide as 128 together, beside the routed ones."""
    return DeepseekForCausalLM(
        DeepseekConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=384,
            moe_intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            n_routed_experts=16,
            n_shared_experts=2,
            num_experts_per_tok=4,
            first_k_dense_replace=1,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
