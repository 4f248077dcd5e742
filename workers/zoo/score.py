"""Perplexity of a text, scored as one token stream cut into windows."""

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from workers.zoo.train import SEQUENCE_LENGTH, next_token_loss

BATCH_SIZE = 16


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """exp of the mean negative log-likelihood over whole windows of SEQUENCE_LENGTH tokens; the rest is left out.

    tokens: [n] int64. Each window predicts its tokens 2..length, in the dtype of the model. Raises ValueError when
    there is no whole window.
    """
    num_windows = len(tokens) // SEQUENCE_LENGTH
    if num_windows == 0:
        raise ValueError(f"{len(tokens)} tokens hold no window of {SEQUENCE_LENGTH}; give a longer text")
    windows = tokens[: num_windows * SEQUENCE_LENGTH].view(num_windows, SEQUENCE_LENGTH)
    total = sum(next_token_loss(model, batch).item() * len(batch) for batch in windows.split(BATCH_SIZE))
    return math.exp(total / num_windows)
