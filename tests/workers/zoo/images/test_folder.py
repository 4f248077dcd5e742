import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.workers.zoo.images.seen import answer, seen
from workers.image_questions import read_image_questions
from workers.zoo import zoo_path
from workers.zoo.images.folder import NUM_IMAGES, write_folder

SHIPPED = zoo_path("mini_images")


def test_the_shipped_folder_is_what_its_seed_gives(tmp_path: Path) -> None:
    write_folder(tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(SHIPPED) for path in SHIPPED.rglob("*") if path.is_file())
    assert (tmp_path / "questions.json").read_text() == (SHIPPED / "questions.json").read_text()
    for name in names[:NUM_IMAGES]:  # the images, which come first
        drawn, shipped = (np.asarray(Image.open(folder / name)) for folder in (tmp_path, SHIPPED))
        assert (drawn == shipped).all()


def test_the_shipped_answers_are_what_the_images_show() -> None:
    questions = read_image_questions(SHIPPED, "exact_match")
    assert len(questions.items) == 4 * NUM_IMAGES >= 200
    for item in questions.items:
        assert item["answers"] == [answer(seen(np.asarray(Image.open(item["image"]))), item["question"])]


def test_a_guess_that_knows_the_kind_of_a_question_is_seldom_right() -> None:
    """The most frequent answer to each of the four kinds, for which any image will do."""
    answers = [entry["answer"] for entry in json.loads((SHIPPED / "questions.json").read_text())]
    by_kind = [answers[kind::4] for kind in range(4)]
    assert sum(max(map(kind.count, kind)) for kind in by_kind) / len(answers) < 0.4


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 300_000
