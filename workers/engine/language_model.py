"""The language model of one that sees, by itself: what runs under vLLM of LLaVA and VILA.

vLLM has LLaVA whole and no VILA, and its own image processing needs torchvision. Tower and projector keep their bits
and are small, so they run in Transformers (workers.image_embeddings), which hands over embeddings; vLLM then needs a
LLaMA and nothing else, whose weights it takes from the files of the whole by the architecture's table.

Importing this makes vLLM know the class, also in its workers of tensor parallelism, which import WORKER_EXTENSION.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm import ModelRegistry
from vllm.model_executor.models.llama import LlamaForCausalLM

from workers.arch import Architecture
from workers.arch.llava import LLAVA
from workers.arch.vila import VILA

NAME = "LanguageModelOfOneThatSees"
WHOLE: dict[str, Architecture] = {"llava": LLAVA, "llava_llama": VILA}
"""model_type of a config.json -> the table of the whole."""


def language_model_config(config: Any) -> Any:
    """vLLM's `hf_overrides`: of the configuration of a whole its language model's; any other is left as it is."""
    if config.model_type not in WHOLE:
        return config
    text = config.get_text_config()
    text.architectures, text.whole = [NAME], config.model_type
    text.tie_word_embeddings = config.tie_word_embeddings
    return text


class LanguageModel(LlamaForCausalLM):
    """vLLM's LLaMA, from files with more in them."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """weights: stored names and tensors of the whole."""
        table = WHOLE[self.config.whole]
        loaded: set[str] = super().load_weights(_own(table, weights))
        return loaded


def _own(table: Architecture, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Those of the language model, by the names that a LLaMA alone has."""
    model, head = table.embedding.removesuffix("embed_tokens"), f"{table.head}."
    for stored, tensor in weights:
        name = table.module_name(stored)
        if name.startswith(model):
            yield f"model.{name.removeprefix(model)}", tensor
        elif name.startswith(head):
            yield name, tensor


class WorkerExtension:
    """Adds nothing to vLLM's workers; they import this module for its sake."""


WORKER_EXTENSION = f"{__name__}.{WorkerExtension.__name__}"
ModelRegistry.register_model(NAME, LanguageModel)
