"""Prompts with images as a language model's first block gets them, for an engine that runs its blocks alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging

from workers.evaluator import ImagePrompt
from workers.transformers_images import encoded, load_model, load_processor


class ImageEmbeddings:
    """Tower, projector and embedding of a checkpoint in Transformers; a rotation may have turned the last two."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        """Raises BadInputError when the checkpoint sees no images or its processor is missing."""
        self.processor = load_processor(directory)
        config = AutoConfig.from_pretrained(directory)
        config.get_text_config().num_hidden_layers = 0
        with _without_warnings():  # of the blocks' weights, for which this model has no place
            self._model: Any = load_model(directory, dtype, config=config).to(device)

    @torch.inference_mode()
    def of(self, prompt: ImagePrompt) -> Tensor:
        """[L, hidden] on the host, in the engine's dtype."""
        model = self._model
        inputs = encoded(self.processor, prompt).to(model.device, model.dtype)
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        if prompt.images:
            features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
            embeddings[inputs["input_ids"] == model.config.image_token_id] = torch.cat(features).to(embeddings.dtype)
        host: Tensor = embeddings[0].cpu()
        return host


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Within it Transformers logs errors alone."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
