import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.workers.zoo.images.seen import answer, seen
from workers.image_questions import read_image_questions
from workers.zoo import zoo_path
from workers.zoo.images.folder import FOLDERS, NUM_IMAGES, write_folders

SHIPPED = zoo_path("mini_images/held_out")


def test_the_shipped_folders_are_what_their_seeds_give(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for name in FOLDERS:
        made, shipped = tmp_path / name, zoo_path(f"mini_images/{name}")
        files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file())
        assert (made / "questions.json").read_text() == (shipped / "questions.json").read_text()
        for file in files[:NUM_IMAGES]:  # the images, which come first
            assert (np.asarray(Image.open(made / file)) == np.asarray(Image.open(shipped / file))).all()


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


def test_both_folders_stay_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file()) < 300_000
