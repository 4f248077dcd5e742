"""Benchmarks of questions about images as the hub has them.

Rows become entries of `workers.image_questions`, with its checks, prompts and scores. An image stays in the data set's
file until it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workers.errors import BadInputError
from workers.hub import data_set_of_hub
from workers.image_questions import ImageQuestions, checked_item, default_prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageBenchmark:
    """One split of a data set.

    score: what an answer is worth, as in `workers.image_questions`. columns: its names -> the data set's, where they
    differ. images: the configuration that has the image under the `id` that a question calls `imageId`; null where a
    question has its own.
    """

    repo: str
    config: str
    split: str
    score: str
    columns: Mapping[str, str] = field(default_factory=dict)
    images: str | None = None

    def fingerprint(self, commit: str) -> str:
        return f"{self.repo}@{commit}/{self.config}/{self.split}"


# Splits as in the evaluation of LLaVA-1.5 (Liu et al. 2024): ScienceQA's questions with an image, TextVQA's validation,
# POPE's three categories, GQA's balanced test-dev.
IMAGE_BENCHMARKS: dict[str, ImageBenchmark] = {
    "scienceqa": ImageBenchmark("lmms-lab/ScienceQA", "ScienceQA-IMG", "test", "option_letter", {"gold": "answer"}),
    "textvqa": ImageBenchmark("lmms-lab/textvqa", "default", "validation", "vqa_accuracy"),
    "pope": ImageBenchmark("lmms-lab/POPE", "default", "test", "yes_no"),
    "gqa": ImageBenchmark(
        "lmms-lab/GQA",
        "testdev_balanced_instructions",
        "testdev",
        "exact_match",
        images="testdev_balanced_images",
    ),
}


@dataclass(frozen=True)
class RowImage:
    """An image that a data set decodes when it is opened."""

    images: "Dataset"
    row: int
    source: str

    def __call__(self) -> "Image":
        image: Image = self.images[self.row]["image"]
        return image

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}"


def read_benchmark(name: str, fingerprint: str) -> ImageQuestions:
    """The questions of a benchmark at the commit of its fingerprint, from the hub or its cache, every row checked.

    Raises BadInputError naming the row that is not as expected; TransientError when the hub does not answer,
    PrerequisiteError when it refuses.
    """
    benchmark = IMAGE_BENCHMARKS[name]
    commit = fingerprint.removeprefix(f"{benchmark.repo}@").partition("/")[0]
    questions = _load(benchmark.repo, benchmark.config, benchmark.split, commit, fingerprint)
    if benchmark.images is None:
        images, row_of = questions, None
        questions = questions.remove_columns("image")  # or each is decoded while the rows are read
    else:
        images = _load(benchmark.repo, benchmark.images, benchmark.split, commit, fingerprint)
        row_of = {image_id: row for row, image_id in enumerate(images["id"])}
    items = []
    for row, entry in enumerate(questions):
        spot = f"{fingerprint}, row {row}"
        renamed = entry | {ours: entry.get(theirs) for ours, theirs in benchmark.columns.items()}
        where = row if row_of is None else row_of.get(entry.get("imageId"))
        if where is None:
            raise BadInputError(f"{spot}: no image {entry.get('imageId')} in {benchmark.images}")
        items.append(checked_item(spot, renamed, benchmark.score, RowImage(images, where, fingerprint)))
    return ImageQuestions(benchmark.score, default_prompt(benchmark.score), tuple(items))


def _load(repo: str, config: str, split: str, commit: str, fingerprint: str) -> Any:
    from datasets import load_dataset  # here: the planner needs the names alone

    with data_set_of_hub(fingerprint):
        return load_dataset(repo, config, split=split, revision=commit)
