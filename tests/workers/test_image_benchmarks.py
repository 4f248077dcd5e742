"""Benchmarks about images in the layout of the hub's data sets: the same three questions each as from a folder."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from transformers import PreTrainedTokenizerBase

from tests.workers.test_image_questions import ANSWERS, COLOURS, EXPECTED, FIXTURES, KnowingEvaluator, draw, tokenizer
from workers import image_benchmarks
from workers.api import Metric
from workers.errors import BadInputError, TransientError
from workers.harness import run_tasks
from workers.image_benchmarks import IMAGE_BENCHMARKS, read_benchmark
from workers.image_questions import image_task

__all__ = ["tokenizer"]  # a fixture
COMMIT = "0123abcd"
Row = dict[str, Any]


def scienceqa(row: Row) -> Row:
    return {"hint": "", "lecture": "Long.", **row, "answer": row["gold"]}


def gqa(row: Row | list[str]) -> Row:
    """The questions name an image of another table."""
    question, answer, image = row if isinstance(row, list) else (row["question"], row["answer"], row["image"])
    return {"question": question, "answer": answer, "imageId": image.removesuffix(".png"), "fullAnswer": "Long."}


ROWS: dict[str, Callable[[Any], Row]] = {"scienceqa": scienceqa, "gqa": gqa, "textvqa": dict, "pope": dict}


def store(repo: Path, config: str, split: str, rows: list[Row]) -> None:
    """A configuration of a data set as the hub has it: parquet, images inside, and the card that says where."""
    images = {"image": Image()} if "image" in rows[0] else {}
    kinds = {key: Value("string") for key in rows[0]} | {
        key: Value("int64") if isinstance(value, int) else [Value("string")]
        for key, value in rows[0].items()
        if not isinstance(value, str)
    }
    table = Dataset.from_list(rows, features=Features(kinds | images))
    (repo / config).mkdir(parents=True)
    table.to_parquet(repo / config / f"{split}.parquet")
    with (repo / "card").open("a") as card:
        card.write(f"- {{config_name: {config}, data_files: [{{split: {split}, path: {config}/{split}.parquet}}]}}\n")
    (repo / "README.md").write_text(f"---\nconfigs:\n{(repo / 'card').read_text()}---\n")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Row]]:
    """Rows of each benchmark, to be stored by `fingerprint`; the table of benchmarks points there."""
    draw(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))  # which goes by names and commits
    monkeypatch.setattr(
        image_benchmarks,
        "IMAGE_BENCHMARKS",
        {name: replace(benchmark, repo=str(tmp_path / name)) for name, benchmark in IMAGE_BENCHMARKS.items()},
    )
    return {name: [ROWS[name](row) for row in rows] for name, rows in FIXTURES.items()}


def fingerprint(name: str, rows: list[Row], directory: Path) -> str:
    """Store a benchmark's rows; the name of that state."""
    benchmark = image_benchmarks.IMAGE_BENCHMARKS[name]
    files = {colour: str(directory / "images" / f"{colour}.png") for colour in COLOURS}
    if benchmark.images is not None:
        store(
            Path(benchmark.repo), benchmark.images, benchmark.split, [{"id": c, "image": f} for c, f in files.items()]
        )
    else:
        rows = [row | {"image": files[row["image"]]} for row in rows]
    store(Path(benchmark.repo), benchmark.config, benchmark.split, rows)
    return benchmark.fingerprint(COMMIT)


@pytest.mark.parametrize("name", IMAGE_BENCHMARKS)
def test_a_benchmark_of_the_hub_is_scored_as_from_a_folder(
    name: str, hub: dict[str, list[Row]], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    evaluator = KnowingEvaluator(ANSWERS[name])
    own = {name: image_task(name, read_benchmark(name, fingerprint(name, hub[name], tmp_path)))}
    metrics: list[Metric] = run_tasks(evaluator, tokenizer, [name], None, limit=None, own=own)
    wanted = {metric: value for metric, value in EXPECTED.items() if metric.startswith(f"{name}.")}
    assert {m.name: m.value for m in metrics} == pytest.approx(wanted)
    for prompt, colour in zip(evaluator.shown, COLOURS, strict=True):
        (image,) = prompt.images
        assert (image.mode, image.size) == ("RGB", (16, 12))
        assert int(np.asarray(image).mean((0, 1)).argmax()) == [*COLOURS].index(colour)


def test_splits_and_names_are_those_of_the_hub() -> None:
    assert {name: benchmark.fingerprint(COMMIT) for name, benchmark in IMAGE_BENCHMARKS.items()} == {
        "scienceqa": "lmms-lab/ScienceQA@0123abcd/ScienceQA-IMG/test",
        "textvqa": "lmms-lab/textvqa@0123abcd/default/validation",
        "pope": "lmms-lab/POPE@0123abcd/default/test",
        "gqa": "lmms-lab/GQA@0123abcd/testdev_balanced_instructions/testdev",
    }


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gqa", {"imageId": "pink"}, "row 1: no image pink in testdev_balanced_images"),
        ("gqa", {"question": " "}, "row 1: `question` is needed"),
        ("pope", {"answer": "maybe"}, 'row 1: answer "maybe" is neither yes nor no'),
        ("scienceqa", {"answer": 7}, "row 1: gold 7 is none of the 2 choices"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(
    name: str, change: Row, said: str, hub: dict[str, list[Row]], tmp_path: Path
) -> None:
    hub[name][1] |= change
    state = fingerprint(name, hub[name], tmp_path)
    with pytest.raises(BadInputError, match=f"{name}@{COMMIT}/.*, {said}"):
        read_benchmark(name, state)


def test_a_hub_out_of_reach_is_asked_again(hub: dict[str, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    missing = IMAGE_BENCHMARKS["gqa"]
    monkeypatch.setattr(image_benchmarks, "IMAGE_BENCHMARKS", {"gqa": missing})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TransientError, match="the hub did not deliver lmms-lab/GQA@0123abcd/testdev_balanced"):
        read_benchmark("gqa", missing.fingerprint(COMMIT))


def test_a_full_disk_is_not_the_hub_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(OSError, match="No space left"):
        read_benchmark("gqa", IMAGE_BENCHMARKS["gqa"].fingerprint(COMMIT))
