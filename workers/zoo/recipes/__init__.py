"""One file for each mini model: its shape, and what its training differs in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from workers.zoo.recipes import (
    mini_deepseek_moe,
    mini_gqa,
    mini_llama,
    mini_llava,
    mini_mamba,
    mini_mixtral,
    mini_vila,
)
from workers.zoo.train import TrainRecipe


@dataclass(frozen=True)
class Recipe:
    """make: gives the Transformers model with random weights. train: the numbers of its training run.

    processor: of a model that sees, its processor around a tokenizer, for so many positions; null for one that reads.
    """

    make: Callable[[], Any]
    train: TrainRecipe
    processor: Callable[[Tokenizer, int], Any] | None = None


RECIPES: dict[str, Recipe] = {
    "mini_llama": Recipe(mini_llama.make, mini_llama.TRAIN),
    **{name: Recipe(mini_gqa.make, train) for name, train in mini_gqa.BUDGETS.items()},
    "mini_mixtral": Recipe(mini_mixtral.make, mini_mixtral.TRAIN),
    "mini_deepseek_moe": Recipe(mini_deepseek_moe.make, mini_deepseek_moe.TRAIN),
    "mini_mamba": Recipe(mini_mamba.make, mini_mamba.TRAIN),
    "mini_llava": Recipe(mini_llava.make, mini_llava.TRAIN, mini_llava.processor),
    "mini_vila": Recipe(mini_vila.make, mini_vila.TRAIN, mini_vila.processor),
}
