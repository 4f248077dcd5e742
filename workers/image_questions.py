"""Questions about images, from a folder of the user's or elsewhere, and the task lm-evaluation-harness makes of them.

A folder holds `images/` and `questions.json`, a list. An entry is an object, or [question, answer, image] in short:

| score         | columns beside question and image                     | metrics                               |
|---------------|-------------------------------------------------------|---------------------------------------|
| exact_match   | answer, a text, or answers, a list                    | exact_match                           |
| option_letter | choices; gold, counted from 0; hint where there is one| acc                                   |
| vqa_accuracy  | answers: one text of each person asked (ten)          | vqa_acc                               |
| yes_no        | answer: yes or no; category where there are several   | acc, precision, recall, f1, yes_ratio |

image names a file of `images/`, with or without its .png, .jpg or .jpeg. A prompt is Jinja over these columns; null is
LLaVA-1.5's for that kind of question. The image stands in front of it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.errors import BadInputError
from workers.evaluator import IMAGE_MARK
from workers.image_scores import LETTERS, YES_NO_METRICS, Verdict, exact_match, option_letter, says_yes, vqa_accuracy
from workers.item_checks import is_text, is_texts, shown_columns

SUFFIXES = ("", ".png", ".jpg", ".jpeg")
SHORT_ANSWER = "{{question}}\nAnswer the question using a single word or phrase."
LETTER_ANSWER = (
    "{% if hint %}Context: {{hint}}\n{% endif %}{{question}}\n"
    f"{{% for choice in choices %}}{{{{'{LETTERS}'[loop.index0]}}}}. {{{{choice}}}}\n{{% endfor %}}"
    "Answer with the option's letter from the given choices directly."
)
MAX_NEW_TOKENS = 16
CALIBRATED_ON = "exact_match"  # the kind whose answers are read when a folder is for calibration

Item = dict[str, Any]


@dataclass(frozen=True)
class ImageQuestions:
    """Checked items: columns as in the table with defaults filled in; `image` is a path, or opens it when called."""

    score: str
    prompt: str
    items: tuple[Item, ...]


def read_image_questions(folder: Path, score: str, prompt: str | None = None) -> ImageQuestions:
    """Read and check every entry, and that every image is one.

    Raises BadInputError naming the file, the entry (counted from 1) and what is wrong with it.
    """
    kind = _KINDS.get(score)
    if kind is None:
        raise BadInputError(f"score={score}: unknown; valid: {', '.join(_KINDS)}")
    path = folder / "questions.json"
    template = kind.prompt if prompt is None else prompt
    _check_prompt(path, template, kind)
    known: dict[str, Path] = {}
    items = [
        _item(folder, f"{path}, entry {n}", entry, score, known) for n, entry in enumerate(_entries(path), start=1)
    ]
    return ImageQuestions(score, template, tuple(items))


def checked_item(spot: str, entry: Item, score: str, image: Any) -> Item:
    """What its question and its score need of an entry, beside its image. Raises BadInputError naming `spot`."""
    if not is_text(entry.get("question")):
        raise BadInputError(f"{spot}: `question` is needed, a text")
    return {"question": entry["question"], "image": image, **_KINDS[score].checked(spot, entry)}


def default_prompt(score: str) -> str:
    """LLaVA-1.5's for questions of this score."""
    return _KINDS[score].prompt


def image_task(name: str, questions: ImageQuestions) -> dict[str, Any]:
    """The task as the harness takes it. Greedy answers of up to 16 tokens, as LLaVA's evaluation of short answers."""
    kind = _KINDS[questions.score]

    def items(**_metadata: object) -> dict[str, Any]:
        from datasets import Dataset  # here: the planner only checks

        return {"test": Dataset.from_list([item | {"image": n} for n, item in enumerate(questions.items)])}

    return {
        "task": name,
        "custom_dataset": items,
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "generate_until",
        # opened when it is shown, or thousands would be open
        "doc_to_image": lambda item: [questions.items[item["image"]]["image"]],
        "doc_to_text": f"{IMAGE_MARK}\n{questions.prompt}",
        "doc_to_target": "question",  # the harness wants one; process_results knows the answers
        "generation_kwargs": {"until": [], "max_gen_toks": MAX_NEW_TOKENS, "do_sample": False},
        "process_results": lambda item, answers: kind.results(item, answers[0]),
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": True}
            for metric, aggregation in kind.metrics.items()
        ],
        "metadata": {"version": 1.0},
    }


# --- kinds of questions ----------------------------------------------------------------------------------------------


def _with_answers(spot: str, entry: Item) -> Item:
    answers = entry.get("answers", [entry["answer"]] if "answer" in entry else None)
    if not is_texts(answers, 1):
        raise BadInputError(f"{spot}: `answer`, a text, or `answers`, a list of texts, is needed")
    return {"answers": answers}


def _with_choices(spot: str, entry: Item) -> Item:
    choices, gold, hint = entry.get("choices"), entry.get("gold"), entry.get("hint") or ""
    if not is_texts(choices, 2) or len(choices) > len(LETTERS):  # type: ignore[arg-type]  # a list by now
        raise BadInputError(f"{spot}: `choices` is needed, a list of 2 to {len(LETTERS)} texts")
    assert isinstance(choices, list)
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise BadInputError(f"{spot}: gold {json.dumps(gold)} is none of the {len(choices)} choices, counted from 0")
    return {"choices": choices, "gold": gold, "hint": str(hint)}


def _with_people(spot: str, entry: Item) -> Item:
    if not is_texts(entry.get("answers"), 2):
        raise BadInputError(f"{spot}: `answers` is needed, a text of each person asked (two or more)")
    return {"answers": entry["answers"]}


def _with_yes_no(spot: str, entry: Item) -> Item:
    answer = entry.get("answer")
    if not isinstance(answer, str) or answer.strip().lower() not in ("yes", "no"):
        raise BadInputError(f"{spot}: answer {json.dumps(answer)} is neither yes nor no")
    return {"answer": answer.strip().lower(), "category": str(entry.get("category") or "")}


def _verdicts(item: Item, answer: str) -> dict[str, Any]:
    verdict = Verdict(says_yes(answer), item["answer"] == "yes", item["category"])
    return dict.fromkeys(YES_NO_METRICS, verdict)


@dataclass(frozen=True)
class _Kind:
    """checked: (spot, entry) -> the columns it adds. results: (item, answer) -> metric -> what is aggregated."""

    prompt: str
    columns: tuple[str, ...]
    checked: Callable[[str, Item], Item]
    results: Callable[[Item, str], dict[str, Any]]
    metrics: dict[str, str | Callable[[Sequence[Verdict]], float]]


_KINDS: dict[str, _Kind] = {
    "exact_match": _Kind(
        SHORT_ANSWER,
        ("answers",),
        _with_answers,
        lambda item, answer: {"exact_match": exact_match(answer, item["answers"])},
        {"exact_match": "mean"},
    ),
    "option_letter": _Kind(
        LETTER_ANSWER,
        ("choices", "gold", "hint"),
        _with_choices,
        lambda item, answer: {"acc": option_letter(answer, item["gold"], len(item["choices"]))},
        {"acc": "mean"},
    ),
    "vqa_accuracy": _Kind(
        SHORT_ANSWER,
        ("answers",),
        _with_people,
        lambda item, answer: {"vqa_acc": vqa_accuracy(answer, item["answers"])},
        {"vqa_acc": "mean"},
    ),
    "yes_no": _Kind(SHORT_ANSWER, ("answer", "category"), _with_yes_no, _verdicts, {**YES_NO_METRICS}),
}


# --- files -----------------------------------------------------------------------------------------------------------


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInputError(
            f"{path.parent}: no questions.json; a folder with questions.json and images/ is needed"
        ) from error
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path}: not JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise BadInputError(f"{path}: a list of questions is needed, and it holds none")
    return entries


def _item(folder: Path, spot: str, entry: Any, score: str, known: dict[str, Path]) -> Item:
    if isinstance(entry, list) and len(entry) == 3:
        entry = dict(zip(("question", "answer", "image"), entry, strict=True))
    if not isinstance(entry, dict):
        raise BadInputError(f"{spot}: neither an object nor [question, answer, image]")
    image = entry.get("image")
    if not (is_text(image) or (isinstance(image, int) and not isinstance(image, bool))):
        raise BadInputError(f"{spot}: `image` is needed, the name of a file in images/")
    name = str(image)
    item = checked_item(spot, entry, score, None)
    if name not in known:
        known[name] = _image(folder / "images", spot, name)
    return item | {"image": known[name]}


def _image(folder: Path, spot: str, name: str) -> Path:
    from PIL import Image, UnidentifiedImageError

    path = next((p for s in SUFFIXES if (p := folder / f"{name}{s}").is_file()), None)
    if path is None or ".." in Path(name).parts:
        raise BadInputError(f"{spot}: no image {name} in {folder} (tried {', '.join(SUFFIXES[1:])} too)")
    try:
        with Image.open(path):
            return path
    except (UnidentifiedImageError, OSError) as error:
        raise BadInputError(f"{path}: not an image that Pillow can read; copy it again, or leave out {spot}") from error


def _check_prompt(path: Path, prompt: str, kind: _Kind) -> None:
    shown = shown_columns(path, prompt)
    columns = ("question", *kind.columns)
    if not shown or not shown <= set(columns):
        said = ", ".join(sorted(shown - set(columns))) or "nothing of an item"
        raise BadInputError(f"prompt of {path}: shows {said}; there are {', '.join(columns)}")
