"""Windows of tokens in which every stretch begins with an image and goes on with questions about it and their answers.

A window is always full: questions follow each other until a stretch ends, be it in the middle of one. There is no
padding, and a window counts as many tokens as one of text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.zoo.images.questions import CAPTION, ONE_WORD, Question, questions
from workers.zoo.images.scenes import SIZE, Pixels, Scene, draw, scene

STRETCH = 64  # tokens about one image, its own included


@dataclass(frozen=True)
class ImageWindows:
    """Windows [n, length] and the images they show, in order.

    input_ids: [n, length] int64. pixel_values: [images, channels, height, width] float32, as the model wants them.
    answers: [n, length] bool, which tokens are those of an answer or close it.
    """

    input_ids: Tensor
    pixel_values: Tensor
    answers: Tensor


class WindowMaker:
    """Makes windows for one model out of the scenes of one seed.

    processor: of Transformers, with a chat template that lets questions and answers follow each other without a break.
    """

    def __init__(self, processor: Any, seed: int, length: int) -> None:
        """Raises ValueError when stretches do not fill a window, or an image fills a stretch."""
        self._processor, self._seed, self._length = processor, seed, length
        blank = Image.new("RGB", (SIZE, SIZE))
        shown = processor(images=[blank], text=[processor.image_token])["input_ids"][0]
        if length % STRETCH or len(shown) >= STRETCH:
            raise ValueError(
                f"a window of {length} tokens, an image of {len(shown)}: stretches of {STRETCH} do not fit; change one"
            )
        self._image = [int(token) for token in shown]

    def make(self, first: int, count: int) -> ImageWindows:
        """Windows number `first` to `first + count - 1`; no two windows of a seed show the same scene."""
        per_window = self._length // STRETCH
        scenes = [scene(self._seed, index) for index in range(first * per_window, (first + count) * per_window)]
        stretches = [self._stretch(each, first * per_window + i) for i, each in enumerate(scenes)]
        tokens, answers = (torch.tensor(column) for column in zip(*stretches, strict=True))
        return ImageWindows(
            input_ids=tokens.view(count, self._length),
            pixel_values=self.pixel_values([draw(each) for each in scenes]),
            answers=answers.view(count, self._length),
        )

    def pixel_values(self, pictures: list[Pixels]) -> Tensor:
        """[images, channels, height, width] float32, by the model's own processor."""
        images = [Image.fromarray(picture) for picture in pictures]
        values: Tensor = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return values

    def _stretch(self, scene: Scene, index: int) -> tuple[list[int], list[bool]]:
        tokens, answers = list(self._image), [False] * len(self._image)
        for question in _asked(scene, np.random.default_rng([self._seed, index, 1])):
            text, answer = self._encoded(question)
            tokens += text + answer
            answers += [False] * len(text) + [True] * len(answer)
            if len(tokens) >= STRETCH:
                break
        return tokens[:STRETCH], answers[:STRETCH]

    def _encoded(self, question: Question) -> tuple[list[int], list[int]]:
        tokenizer = self._processor.tokenizer
        ask = {"role": "user", "content": [{"type": "text", "text": question.text}]}
        say = {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}
        before = self._processor.apply_chat_template([ask], add_generation_prompt=True)
        whole = self._processor.apply_chat_template([ask, say])
        text, answer = before, whole.removeprefix(before)
        encoded = tokenizer([text, answer], add_special_tokens=False)["input_ids"]
        return encoded[0], encoded[1]


def _asked(scene: Scene, random: np.random.Generator) -> Iterator[Question]:
    """Endless questions: one of each kind in a random order, the caption last as it says everything; then again."""
    found = questions(scene)
    kinds = [*(ONE_WORD[number] for number in random.permutation(len(ONE_WORD))), CAPTION]
    while True:
        for kind in kinds:
            yield found[kind][int(random.integers(len(found[kind])))]
