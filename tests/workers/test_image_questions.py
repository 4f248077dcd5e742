"""Folders of image questions: what is read, what is refused, what each benchmark makes of known answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conf import register
from conf.schema import TaskFileConf
from tests.workers.test_canary import ShiftedEvaluator
from tests.workers.tiny_llava import write_llava
from tests.workers.tiny_requests import write_tokenizer
from workers.api import Metric
from workers.errors import BadInputError
from workers.evaluator import ImagePrompt
from workers.harness import run_tasks
from workers.image_questions import LETTER_ANSWER, read_image_questions
from workers.task_files import own_task
from workers.transformers_evaluator import TransformersEvaluator

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SHORT = "\nAnswer the question using a single word or phrase."

# Three questions of our own for each benchmark, about images of one colour.
FIXTURES: dict[str, list[Any]] = {
    "scienceqa": [
        {"image": "red", "question": "Which one?", "choices": ["grass", "a rose"], "gold": 1, "hint": "Look."},
        {"image": "green", "question": "Which one?", "choices": ["grass", "a rose"], "gold": 0},
        {"image": "blue", "question": "Which one?", "choices": ["coal", "snow", "the sea"], "gold": 2},
    ],
    "textvqa": [
        {"image": "red", "question": "What does it say?", "answers": ["STOP!"] * 3 + ["halt"] * 7},
        {"image": "green", "question": "What does it say?", "answers": ["go"] * 10},
        {"image": "blue", "question": "How many?", "answers": ["two"] * 5 + ["three"] * 5},
    ],
    "pope": [
        {"image": "red", "question": "Is there a rose?", "answer": "yes", "category": "random"},
        {"image": "green", "question": "Is there a rose?", "answer": "no", "category": "random"},
        {"image": "blue", "question": "Is there a rose?", "answer": "no", "category": "popular"},
    ],
    "gqa": [
        ["What colour is it?", "red", "red"],
        ["What colour is it?", "green", "green.png"],
        {"question": "What colour is it?", "answer": "blue", "image": "blue"},
    ],
}
# By hand. Letters: B right, `grass` no letter, C right. TextVQA: `stop` was said by three of ten, (3 * 2/3 + 7) / 10;
# `the go` is what all said; `2` by five. POPE: yes, yes, no: random has one of each, popular a true negative.
ANSWERS = {
    "scienceqa": ["B", "grass", "C. the sea"],
    "textvqa": ["stop", "the go", "2"],
    "pope": ["Yes, there is.", "yes", "No"],
    "gqa": ["Red.", "blue", "blue"],
}
EXPECTED = {
    "scienceqa.acc": 2 / 3,
    "textvqa.vqa_acc": (0.9 + 1 + 1) / 3,
    "pope.acc": (0.5 + 1) / 2,
    "pope.precision": (0.5 + 0) / 2,
    "pope.recall": (1 + 0) / 2,
    "pope.f1": (2 / 3 + 0) / 2,
    "pope.yes_ratio": (1 + 0) / 2,
    "gqa.exact_match": 2 / 3,
}


def draw(folder: Path) -> None:
    """One small PNG of each colour, with seeded noise, so that no two pixels need be equal."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        pixels = np.array(colour) * 0.9 + generator.integers(0, 20, (12, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{name}.png")


def write(folder: Path, entries: Any) -> Path:
    draw(folder)
    (folder / "questions.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder


class KnowingEvaluator(ShiftedEvaluator):
    """Gives prepared answers in the order of the questions; remembers what it was shown."""

    def __init__(self, answers: Sequence[str]) -> None:
        super().__init__(0.0)
        self.max_length = 64
        self.answers = list(answers)
        self.shown: list[ImagePrompt] = []

    def answer(self, prompts: Sequence[ImagePrompt], max_new_tokens: int) -> list[str]:
        assert max_new_tokens == 16
        self.shown += prompts
        return [self.answers.pop(0) for _ in prompts]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, 64)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    loaded.add_special_tokens({"eos_token": "t0"})
    return loaded


def suite_files(root: Path) -> dict[str, TaskFileConf]:
    with register.hydra_context():
        return register.compose(["suite=image_questions", f"suite.path={root}"]).root.suite.task_files


@pytest.fixture(scope="module")
def scored(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Metric], KnowingEvaluator]:
    """The four benchmarks in one run, over the fixtures and the suite's YAML."""
    root = tmp_path_factory.mktemp("questions")
    for name, entries in FIXTURES.items():
        write(root / name, entries)
    own = {name: own_task(name, Path(str(conf.path)), conf) for name, conf in suite_files(root).items()}
    evaluator = KnowingEvaluator([answer for name in own for answer in ANSWERS[name]])
    return run_tasks(evaluator, tokenizer, list(own), None, limit=None, own=own), evaluator


def test_each_benchmark_is_scored_by_its_own_definition(scored: tuple[list[Metric], KnowingEvaluator]) -> None:
    metrics, _ = scored
    assert {m.name: m.value for m in metrics} == pytest.approx(EXPECTED)
    assert {m.num_examples for m in metrics} == {3} and {m.unit for m in metrics} == {"fraction"}


def test_prompts_are_those_of_llava_with_the_image_in_front(scored: tuple[list[Metric], KnowingEvaluator]) -> None:
    shown = [prompt.text for prompt in scored[1].shown]
    assert shown[0] == (
        "<image>\nContext: Look.\nWhich one?\nA. grass\nB. a rose\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert shown[1].startswith("<image>\nWhich one?\nA. grass\n")
    assert shown[3] == f"<image>\nWhat does it say?{SHORT}"


def test_each_question_is_shown_its_own_image_in_rgb(scored: tuple[list[Metric], KnowingEvaluator]) -> None:
    for prompt, colour in zip(scored[1].shown, [*COLOURS] * 4, strict=True):
        (image,) = prompt.images
        assert (image.mode, image.size) == ("RGB", (16, 12))
        assert int(np.asarray(image).mean((0, 1)).argmax()) == [*COLOURS].index(colour)


def test_an_engine_that_shows_no_images_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    own = {"gqa": own_task("gqa", write(tmp_path, FIXTURES["gqa"]), TaskFileConf(score="exact_match"))}
    with pytest.raises(BadInputError, match="is shown no images here; set engine=transformers"):
        run_tasks(ShiftedEvaluator(0.0), tokenizer, ["gqa"], None, limit=None, own=own)


# --- what is refused -------------------------------------------------------------------------------------------------

CHOICE = {"image": "red", "question": "Which?", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize(
    ("score", "entries", "said"),
    [
        ("exact", [], "score=exact: unknown; valid: exact_match, option_letter, vqa_accuracy, yes_no"),
        ("exact_match", "{", "questions.json: not JSON"),
        ("exact_match", {}, "questions.json: a list of questions is needed, and it holds none"),
        ("exact_match", [], "questions.json: a list of questions is needed, and it holds none"),
        ("exact_match", ["what?"], "entry 1: neither an object nor"),
        ("exact_match", [["a", "b"]], "entry 1: neither an object nor"),
        ("exact_match", [["a", "b", "red"], {"image": "red"}], "entry 2: `question` is needed"),
        ("exact_match", [{"question": "a", "answer": "b"}], "entry 1: `image` is needed"),
        ("exact_match", [["a", "b", "pink"]], "entry 1: no image pink in .*images .tried .png, .jpg, .jpeg too."),
        ("exact_match", [["a", "b", "../questions.json"]], "entry 1: no image ../questions.json"),
        ("exact_match", [{"image": "red", "question": "a"}], "entry 1: `answer`, a text, or `answers`, a list"),
        ("exact_match", [["a", "", "red"]], "entry 1: `answer`, a text, or `answers`, a list"),
        ("option_letter", [CHOICE | {"choices": ["a"]}], "`choices` is needed, a list of 2 to 10 texts"),
        ("option_letter", [CHOICE | {"choices": ["a"] * 11}], "`choices` is needed, a list of 2 to 10 texts"),
        ("option_letter", [CHOICE | {"gold": 2}], "gold 2 is none of the 2 choices, counted from 0"),
        ("option_letter", [CHOICE | {"gold": "A"}], 'gold "A" is none of the 2 choices'),
        ("option_letter", [CHOICE | {"gold": True}], "gold true is none of the 2 choices"),
        ("vqa_accuracy", [{"image": "red", "question": "a", "answers": ["b"]}], "a text of each person asked"),
        ("vqa_accuracy", [["a", "b", "red"]], "a text of each person asked"),
        ("yes_no", [["a", "maybe", "red"]], 'answer "maybe" is neither yes nor no'),
    ],
)
def test_a_folder_that_cannot_be_scored_is_refused_with_the_spot(
    tmp_path: Path, score: str, entries: Any, said: str
) -> None:
    with pytest.raises(BadInputError, match=said):
        read_image_questions(write(tmp_path, entries), score)


def test_a_folder_without_questions_is_named_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=rf"{tmp_path}: no questions.json; a folder with questions.json and images/"
    ):
        read_image_questions(tmp_path, "exact_match")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, FIXTURES["gqa"])
    (folder / "images" / "green.png").write_text("not pixels")
    with pytest.raises(BadInputError, match=r"images/green.png: not an image .* leave out .*questions.json, entry 2"):
        read_image_questions(folder, "exact_match")


def test_an_image_that_ends_too_early_fails_the_cell_by_name(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = write(tmp_path, FIXTURES["gqa"])
    image = folder / "images" / "blue.png"
    image.write_bytes(image.read_bytes()[:60])
    own = {"gqa": own_task("gqa", folder, TaskFileConf(score="exact_match"))}
    with pytest.raises(BadInputError, match=r"images/blue.png: the image cannot be read .*copy it again"):
        run_tasks(KnowingEvaluator(["a"] * 3), tokenizer, ["gqa"], None, limit=None, own=own)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{{question", "not Jinja"),
        ("{{qestion}}", "shows qestion; there are question, answers"),
        ("Say.", "nothing of"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(tmp_path: Path, prompt: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        read_image_questions(write(tmp_path, FIXTURES["gqa"]), "exact_match", prompt)


def test_a_prompt_of_ones_own_is_taken(tmp_path: Path) -> None:
    folder = write(tmp_path, FIXTURES["scienceqa"])
    assert read_image_questions(folder, "option_letter").prompt == LETTER_ANSWER
    assert (
        read_image_questions(folder, "option_letter", "{{question}} {{choices}}").prompt == "{{question}} {{choices}}"
    )


def test_a_folder_may_be_named_by_way_of_another(tmp_path: Path) -> None:
    folder = write(tmp_path / "questions", FIXTURES["gqa"])
    direct = read_image_questions(folder, "exact_match")
    assert len(read_image_questions(folder / ".." / "questions", "exact_match").items) == len(direct.items)


# --- a set that nobody here made -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
def test_easy_vqa_is_read_and_answered_by_a_model(shared: Path, tmp_path: Path) -> None:
    """9,673 questions in their own layout, four of them put to a random LLaVA."""
    folder = shared / "data" / "easy_vqa" / "test"
    questions = read_image_questions(folder, "exact_match")
    assert len(questions.items) == 9673 and len({item["image"] for item in questions.items}) == 1000
    model = write_llava(tmp_path / "llava")
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(model, "float32", None, 64)
    own = {"easy_vqa": own_task("easy_vqa", folder, TaskFileConf(score="exact_match"))}
    (metric,) = run_tasks(evaluator, AutoTokenizer.from_pretrained(model), ["easy_vqa"], None, limit=4, own=own)
    assert (metric.name, metric.num_examples) == ("easy_vqa.exact_match", 4)
    assert metric.value == 0.0  # its words are t3 to t63
