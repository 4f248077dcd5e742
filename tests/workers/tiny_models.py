"""Models small enough to be made in a test, and the canary of any model."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.api import Canary
from workers.transformers_evaluator import TransformersEvaluator

VOCAB_SIZE = 128


def write_llama(directory: Path, *, seed: int = 0, zero_head: bool = False) -> Path:
    """A random LLaMA of two blocks with heads of 32, in float32. zero_head: all its logits are 0."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    if zero_head:
        torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(directory)
    return directory


def random_prompts(count: int, length: int, vocab_size: int = VOCAB_SIZE) -> list[list[int]]:
    """Token ids, [count][length]."""
    generator = torch.Generator().manual_seed(1)
    return [list(map(int, row)) for row in torch.randint(0, vocab_size, (count, length), generator=generator)]


def canary_of(directory: Path, prompts: list[list[int]]) -> Canary:
    """What the manifest of an unquantized checkpoint says."""
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(directory, "float32", None, max(map(len, prompts)))
    rows = [scores.logprobs.tolist() for scores in evaluator.score(prompts)]
    return Canary(tokens=prompts, reference=rows, quantized=rows)
