"""Calibration windows in which images stand, for models that see.

They are conversations of one image, one question and its answer, in the model's own chat format.
A window begins with a conversation; others follow until it is full, and the last one is cut, be it in the middle of an
image. So there is no padding, and windows count as many tokens as those of a text.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from conf.schema import CalibrationConf
from workers.calibration import Shown, Windows, check_token_ids
from workers.errors import BadInputError
from workers.evaluator import IMAGE_MARK, ImagePrompt
from workers.image_questions import CALIBRATED_ON, ImageQuestions, Item, read_image_questions
from workers.transformers_images import conversation


@dataclass(frozen=True)
class _Conversation:
    """tokens: [length]; is_image: [length], where those of its image stand; pixel_values: [channels, height, width]."""

    tokens: Windows
    is_image: npt.NDArray[np.bool_]
    pixel_values: npt.NDArray[np.float32]


def image_windows(
    conf: CalibrationConf, folder: Path, processor: Any, seed: int, vocab_size: int
) -> tuple[Windows, Shown]:
    """Windows, int64 [conf.num_sequences, conf.sequence_length], and the images that stand in them.

    Conversations come in an order drawn from the seed, all of them before any comes again. Raises BadInputError when
    the folder cannot be read, when images have different numbers of tokens, and when an image fills a window.
    """
    conversations = _conversations(read_image_questions(folder, CALIBRATED_ON, conf.prompt), processor, seed)
    length = conf.sequence_length
    windows = np.empty((conf.num_sequences, length), dtype=np.int64)
    rows = np.full(windows.shape, -1, dtype=np.int64)
    pixels: list[npt.NDArray[np.float32]] = []
    per_image = 0
    for window, row in zip(windows, rows, strict=True):
        filled = 0
        while filled < length:
            shown = next(conversations)
            count = int(shown.is_image.sum())
            per_image = per_image or count
            _check_image(count, per_image, length)
            numbers = np.full(len(shown.tokens), -1, dtype=np.int64)
            numbers[shown.is_image] = len(pixels) * per_image + np.arange(count)
            taken = min(length - filled, len(numbers))
            window[filled : filled + taken] = shown.tokens[:taken]
            row[filled : filled + taken] = numbers[:taken]
            pixels.append(shown.pixel_values)
            filled += taken
    check_token_ids(windows, vocab_size)
    return windows, Shown(np.stack(pixels), rows, per_image)


def _conversations(questions: ImageQuestions, processor: Any, seed: int) -> Iterator[_Conversation]:
    """Endless: every item once in a random order, then in another one."""
    prompt = jinja2.Environment().from_string(questions.prompt)
    rng = random.Random(seed)
    order = list(range(len(questions.items)))
    for _ in itertools.count():
        rng.shuffle(order)
        for index in order:
            yield _encoded(questions.items[index], prompt, processor)


def _encoded(item: Item, prompt: jinja2.Template, processor: Any) -> _Conversation:
    from PIL import Image

    with Image.open(item["image"]) as image:
        shown = ImagePrompt(f"{IMAGE_MARK}\n{prompt.render(item)}", (image.convert("RGB"),))
    inputs = conversation(processor, shown, item["answers"][0])
    tokens = inputs["input_ids"][0].numpy()
    return _Conversation(
        tokens=tokens,
        is_image=tokens == processor.image_token_id,
        pixel_values=inputs["pixel_values"][0].float().numpy(),
    )


def _check_image(count: int, per_image: int, length: int) -> None:
    if count == 0 or count != per_image:
        raise BadInputError(
            f"an image became {count} tokens and another {per_image}; only models that give every image as many can be "
            "calibrated with images: calibrate on text"
        )
    if count >= length:
        raise BadInputError(
            f"an image is {count} tokens, and a calibration window {length}; raise calibration.sequence_length above it"
        )
