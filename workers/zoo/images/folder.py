"""The held-out questions as a folder in the layout of `workers.image_questions`."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from workers.zoo.images.questions import ONE_WORD, Question, questions
from workers.zoo.images.scenes import SEEDS, draw, scene

NUM_IMAGES = 80


def asked(seed: int, index: int) -> list[Question]:
    """One question of each kind that one word answers, about scene number `index` of a seed."""
    random = np.random.default_rng([seed, index, 2])
    by_kind = questions(scene(seed, index))
    return [by_kind[kind][int(random.integers(len(by_kind[kind])))] for kind in ONE_WORD]


def write_folder(directory: Path, num_images: int = NUM_IMAGES, seed: int = SEEDS["held_out"]) -> None:
    """Write questions.json and images/*.png, four questions for each image, into `directory`, which is created."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(num_images):
        name = f"{index:03d}.png"
        Image.fromarray(draw(scene(seed, index))).save(directory / "images" / name, optimize=True)
        entries += [
            {"question": question.text, "answer": question.answer, "image": name} for question in asked(seed, index)
        ]
    lines = ",\n".join(f" {json.dumps(entry)}" for entry in entries)
    (directory / "questions.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
