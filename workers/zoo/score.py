"""Perplexity of a text, scored as one token stream cut into windows, and answers about images; 16 bits and rounded."""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from conf.schema import MinmaxClip, UniformScheme
from workers.evaluator import IMAGE_MARK, ImagePrompt
from workers.image_questions import MAX_NEW_TOKENS
from workers.image_scores import exact_match
from workers.methods.clip.minmax import fit_grid
from workers.models.selective_scan import linear_scan
from workers.transformers_images import answer
from workers.zoo.images.folder import NUM_IMAGES, asked
from workers.zoo.images.scenes import SEEDS, draw, scene
from workers.zoo.train import SEQUENCE_LENGTH, Batch, matrices, next_token_loss

BATCH_SIZE = 16


@torch.no_grad()
def perplexity(model: Any, tokens: Tensor) -> float:
    """exp of the mean negative log-likelihood over whole windows of SEQUENCE_LENGTH tokens; the rest is left out.

    tokens: [n] int64. Each window predicts its tokens 2..length, in the dtype of the model. Raises ValueError when
    there is no whole window.
    """
    windows = whole_windows(tokens)
    with linear_scan():
        batches = windows.split(BATCH_SIZE)
        total = sum(next_token_loss(model, Batch.of_text(batch)).item() * len(batch) for batch in batches)
    return math.exp(total / len(windows))


def whole_windows(tokens: Tensor) -> Tensor:
    """A stream [n] cut into [windows, SEQUENCE_LENGTH]. Raises ValueError when it is shorter than one window."""
    num_windows = len(tokens) // SEQUENCE_LENGTH
    if num_windows == 0:
        raise ValueError(f"{len(tokens)} tokens hold no window of {SEQUENCE_LENGTH}; give a longer text")
    return tokens[: num_windows * SEQUENCE_LENGTH].view(num_windows, SEQUENCE_LENGTH)


def share_answered(model: Any, processor: Any, seed: str) -> float:
    """The share of the one-word questions about NUM_IMAGES scenes of a named seed that a model answers exactly."""
    right = []
    for index in range(NUM_IMAGES):
        image = Image.fromarray(draw(scene(SEEDS[seed], index)))
        for question in asked(SEEDS[seed], index):
            prompt = ImagePrompt(f"{IMAGE_MARK}\n{question.text}", (image,))
            right.append(exact_match(answer(model, processor, prompt, MAX_NEW_TOKENS), [question.answer]))
    return statistics.fmean(right)


def block_matrices(model: Any) -> list[Tensor]:
    """Weights of the linears and experts inside the blocks of the language model, which are what gets quantized."""
    return matrices(model.get_decoder())


@contextmanager
def rounded(model: Any, bits: int) -> Iterator[None]:
    """Within it the block matrices of a model are rounded to nearest, one group per output row."""
    weights = block_matrices(model)
    originals = [weight.detach().clone() for weight in weights]
    scheme = UniformScheme(bits=bits, group_size=None)
    for weight, original in zip(weights, originals, strict=True):
        rows = original.flatten(0, -2)
        grid = fit_grid(rows, MinmaxClip(), scheme)
        weight.data.copy_(grid.values(grid.nearest(rows)).view_as(weight))
    try:
        yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data.copy_(original)
