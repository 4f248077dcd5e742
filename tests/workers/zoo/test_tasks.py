import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from workers.zoo import zoo_path
from workers.zoo.build import write_items
from workers.zoo.tasks.generate import LAST_WORD, continuation_items, last_word_items

HELD_OUT = zoo_path("mini_llama/held_out.txt").read_text()


def shipped(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in zoo_path(f"tasks/{name}.jsonl").read_text().splitlines()]


def test_shipped_items_are_those_the_held_out_text_yields(tmp_path: Path) -> None:
    write_items(tmp_path, HELD_OUT)
    for name in ("mini_continuation.jsonl", "mini_last_word.jsonl"):
        assert (tmp_path / name).read_bytes() == zoo_path(f"tasks/{name}").read_bytes()


def test_the_gold_continuation_follows_the_context_and_no_other_choice_does() -> None:
    for item in shipped("mini_continuation"):
        follows = [f"{item['context']} {choice}" in HELD_OUT for choice in item["choices"]]
        assert follows == [index == item["gold"] for index in range(4)]


def test_distractors_are_different_held_out_text_of_similar_length() -> None:
    for item in shipped("mini_continuation"):
        length = len(item["choices"][item["gold"]])
        assert len(set(item["choices"])) == 4
        assert all(choice in HELD_OUT and abs(len(choice) - length) <= 0.1 * length for choice in item["choices"])


def test_the_right_choice_has_no_favourite_place() -> None:
    golds = [item["gold"] for item in shipped("mini_continuation")]
    # 200 items, four places: expected 50 each, standard deviation sqrt(200 * 1/4 * 3/4) = 6.1; four of them either way.
    assert all(25 < golds.count(place) < 75 for place in range(4))


def test_the_last_word_follows_its_context_and_stands_in_it_behind_the_same_word() -> None:
    for item in shipped("mini_last_word"):
        context, word = item["context"], item["word"]
        assert f"{context} {word}" in HELD_OUT
        assert LAST_WORD.fullmatch(word)
        assert f"{context.split()[-1]} {word}" in " ".join(context.split())


def test_both_tasks_have_two_hundred_items() -> None:
    assert len(shipped("mini_continuation")) == len(shipped("mini_last_word")) == 200


@pytest.mark.parametrize("items", [continuation_items, last_word_items])
def test_a_text_that_is_too_short_is_refused(items: Callable[[str], Sequence[object]]) -> None:
    with pytest.raises(ValueError, match="200 were asked for"):
        items("only a few words " * 50)


def test_the_harness_loads_both_tasks_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed")
    monkeypatch.chdir(tmp_path)
    manager = harness.TaskManager(include_path=str(zoo_path("tasks")), include_defaults=False)
    tasks = manager.load(["mini_continuation", "mini_last_word"])["tasks"]
    item = shipped("mini_last_word")[0]
    task = tasks["mini_last_word"]
    assert task.doc_to_text(item) == item["context"] and task.doc_to_target(item) == f" {item['word']}"
    assert {name: len(list(task.test_docs())) for name, task in tasks.items()} == {
        "mini_continuation": 200,
        "mini_last_word": 200,
    }
