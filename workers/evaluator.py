"""The protocol between scoring and an engine, and what a checkpoint's config.json says to every engine. No torch."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from conf.schema import SuiteConf
from workers.api import Canary
from workers.errors import BadInputError

if TYPE_CHECKING:
    from PIL.Image import Image

DTYPES = ("float32", "bfloat16", "float16")
# Longest request of a benchmark task, in tokens; longer ones lose their left end, as in the harness.
TASK_CONTEXT = 2048
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")  # one of them, of a model that is shown images
IMAGE_MARK = "<image>"  # where a prompt shows an image, in the words of lm-evaluation-harness
# One chunk's float32 logits over the whole vocabulary stay within 512 MiB, and within what the planner counts on.
MAX_CHUNK_LOGITS = 2**27
MAX_CHUNK_TOKENS = 2048
MIN_CHUNK_TOKENS = 256
_TEXT_PARTS, _VISION_PARTS = ("text_config", "llm_cfg"), ("vision_config", "vision_tower_cfg")


@dataclass(frozen=True)
class TokenScores:
    """Of one prompt of n tokens, for its tokens 1 to n - 1.

    logprobs: [n - 1] natural-log probability given all tokens before. is_argmax: [n - 1], whether greedy decoding would
    have chosen that token.
    """

    logprobs: npt.NDArray[np.float64]
    is_argmax: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Loaded:
    """How the weights got into the engine: fresh (first), reloaded (in place) or rebuilt (a new engine).

    canary_difference: mean |difference| from the manifest in nats, NaN without a canary. seconds: by step.
    """

    swap: str
    canary_difference: float
    seconds: dict[str, float]


class Evaluator(Protocol):
    """An engine that holds one checkpoint at a time. Prompts are token ids; nothing here knows text."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt, generated tokens included, since the last `load`."""

    def load(self, directory: Path, dtype: str, canary: Canary | None, max_length: int) -> Loaded:
        """Hold the checkpoint in `directory`, computing in `dtype` (auto | float32 | bfloat16 | float16).

        `directory` may go once this returns. Raises ParityError when the engine's canary log-probabilities are not the
        manifest's, EngineError when the engine refuses the checkpoint, BadInputError when that is damaged.
        """

    def score(self, prompts: Sequence[Sequence[int]]) -> list[TokenScores]:
        """The log-probability of every token but the first of each prompt."""

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """Greedy continuations, each up to and without its first stop token."""

    def close(self) -> None:
        """Give the engine's memory back."""


@dataclass(frozen=True)
class ImagePrompt:
    """A user's turn: each IMAGE_MARK in `text` stands for the next of `images` (RGB)."""

    text: str
    images: "tuple[Image, ...]"


@runtime_checkable
class ShowsImages(Protocol):
    """What an evaluator has beside the protocol above when it can show images to a model that sees."""

    def answer(self, prompts: Sequence[ImagePrompt], max_new_tokens: int) -> list[str]:
        """Greedy answers up to the end-of-text token, in the model's own chat format, without special tokens.

        Raises BadInputError when the checkpoint sees no images or its processor is missing.
        """


def sees_images(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a vision-language model."""
    return any(part in config for part in _VISION_PARTS)


# --- what a checkpoint's config.json says to an engine ---------------------------------------------------------------


def read_config(directory: Path) -> dict[str, Any]:
    """config.json. Raises BadInputError when it is missing or damaged."""
    path = directory / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: {error}") from error
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config."""
    return next((config[part] for part in _TEXT_PARTS if part in config), config)


def engine_dtype(requested: str, config: dict[str, Any]) -> str:
    """`auto` is the checkpoint's own dtype. Raises BadInputError when config.json names none."""
    if requested != "auto":
        return requested
    said = (part.get(key) for part in (config, text_config(config)) for key in ("dtype", "torch_dtype"))
    dtype = next(filter(None, said), None)
    if dtype not in DTYPES:
        raise BadInputError(
            f"config.json says dtype {dtype}; set suite.dtype to one of {', '.join(DTYPES)} instead of auto"
        )
    return str(dtype)


def context_length(suite: SuiteConf, config: dict[str, Any]) -> int:
    """Tokens an engine must hold for `suite`. Raises BadInputError when a window exceeds the model's positions."""
    positions = text_config(config).get("max_position_embeddings")
    windows = suite.sequence_length if suite.perplexity else 0
    if positions is not None and windows > positions:
        raise BadInputError(
            f"suite.sequence_length={windows}, but the model has {positions} positions; lower suite.sequence_length"
        )
    tasks = (TASK_CONTEXT if positions is None else min(TASK_CONTEXT, positions)) if suite.tasks else 0
    return max(windows, tasks)


def chunk_tokens(config: dict[str, Any]) -> int:
    """Tokens scored at once, so that their float32 logits stay small beside the weights."""
    vocab_size = int(text_config(config)["vocab_size"])
    return max(MIN_CHUNK_TOKENS, min(MAX_CHUNK_TOKENS, MAX_CHUNK_LOGITS // vocab_size))


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the wall time of a step, which may run more than once."""
    started = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started
