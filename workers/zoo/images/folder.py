"""Questions as folders in the layout of `workers.image_questions`: held out, and to calibrate on."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from workers.zoo.images.questions import CAPTION, ONE_WORD, Question, questions
from workers.zoo.images.scenes import SEEDS, draw, scene

NUM_IMAGES = 80
FOLDERS = {"held_out": ONE_WORD, "calibration": (*ONE_WORD, CAPTION)}  # by the name of a seed: what is asked


def asked(seed: int, index: int, kinds: Sequence[str] = ONE_WORD) -> list[Question]:
    """One question of each of these kinds about scene number `index` of a seed."""
    random = np.random.default_rng([seed, index, 2])
    by_kind = questions(scene(seed, index))
    return [by_kind[kind][int(random.integers(len(by_kind[kind])))] for kind in kinds]


def write_folders(directory: Path, num_images: int = NUM_IMAGES) -> None:
    """Write every one of FOLDERS into `directory`, with questions.json and images/*.png."""
    for name, kinds in FOLDERS.items():
        _write_folder(directory / name, num_images, SEEDS[name], kinds)


def _write_folder(directory: Path, num_images: int, seed: int, kinds: Sequence[str]) -> None:
    (directory / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(num_images):
        name = f"{index:03d}.png"
        Image.fromarray(draw(scene(seed, index))).save(directory / "images" / name, optimize=True)
        entries += [{"question": q.text, "answer": q.answer, "image": name} for q in asked(seed, index, kinds)]
    lines = ",\n".join(f" {json.dumps(entry)}" for entry in entries)
    (directory / "questions.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
