"""Transformers as an evaluator: any model it knows, on one device, without vLLM."""

import gc
import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from workers.api import Canary
from workers.canary import canary_difference, require_parity
from workers.errors import BadInputError
from workers.evaluator import (
    ImagePrompt,
    Loaded,
    TokenScores,
    chunk_tokens,
    engine_dtype,
    read_config,
    timed,
)
from workers.transformers_images import answer, load_model, load_processor


class TransformersEvaluator:
    """Implements workers.evaluator.Evaluator and, for models that see, ShowsImages."""

    name = "transformers"
    version: str = importlib.metadata.version("transformers")

    def __init__(self, *, device: str) -> None:
        """device: cpu | cuda."""
        self.max_length = 0
        self._device = torch.device(device)
        self._model: Any = None
        self._chunk_tokens = 0
        self._processor: Any = None
        self._no_images: BadInputError | None = None

    def load(self, directory: Path, dtype: str, canary: Canary | None, max_length: int) -> Loaded:
        """See the protocol. Every load is a fresh model."""
        config = read_config(directory)
        dtype = engine_dtype(dtype, config)
        self.close()
        seconds: dict[str, float] = {}
        with timed(seconds, "model"):
            self._model = load_model(directory, getattr(torch, dtype)).to(self._device)
        self._load_processor(directory)
        self.max_length, self._chunk_tokens = max_length, chunk_tokens(config)
        if canary is None:
            return Loaded("fresh", math.nan, seconds)
        with timed(seconds, "canary"):
            difference = canary_difference(self, canary)
        require_parity(self, directory, dtype, difference)
        return Loaded("fresh", difference.mean, seconds)

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[int]]) -> list[TokenScores]:
        """See the protocol. Batches are padded on the right, which a causal model never looks at."""
        assert self._model is not None, "load a checkpoint first"
        scores: dict[int, TokenScores] = {}
        for batch in _batches(prompts, self._chunk_tokens):
            tokens = _padded([prompts[i] for i in batch]).to(self._device)
            logits = self._model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            targets = tokens[:, 1:, None]
            logprobs = logits.gather(2, targets).squeeze(2) - logits.logsumexp(2)
            is_argmax = logits.argmax(2) == targets.squeeze(2)
            for row, i in enumerate(batch):
                count = len(prompts[i]) - 1
                scores[i] = TokenScores(
                    logprobs=logprobs[row, :count].cpu().numpy().astype(np.float64),
                    is_argmax=is_argmax[row, :count].cpu().numpy(),
                )
        return [scores[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """See the protocol. One prompt at a time: padding on the left would change what a state-space model sees."""
        assert self._model is not None, "load a checkpoint first"
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_tokens) or None, pad_token_id=0
        )
        continuations = []
        for prompt in prompts:
            tokens = torch.tensor([list(prompt)], device=self._device)
            output = self._model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=greedy
            )
            new = output[0, len(prompt) :].tolist()
            continuations.append(new[:-1] if new and new[-1] in stop_tokens else new)
        return continuations

    def answer(self, prompts: Sequence[ImagePrompt], max_new_tokens: int) -> list[str]:
        """See the protocol. One prompt at a time."""
        assert self._model is not None, "load a checkpoint first"
        if self._no_images is not None:
            raise self._no_images
        return [answer(self._model, self._processor, prompt, max_new_tokens) for prompt in prompts]

    def _load_processor(self, directory: Path) -> None:
        """While the directory is there; a suite without images does not fail for want of a processor."""
        self._processor, self._no_images = None, None
        try:
            self._processor = load_processor(directory)
        except BadInputError as error:
            self._no_images = error

    def close(self) -> None:
        """Drop the model."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _batches(prompts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts of similar length, longest first; each batch at most max_tokens once padded, or one prompt."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        if batch and (len(batch) + 1) * len(prompts[batch[0]]) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """[prompts, longest] int64, zeros on the right."""
    tokens = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(list(prompt))
    return tokens
