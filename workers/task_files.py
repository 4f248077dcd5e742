"""Benchmark tasks that the harness does not know: which of a suite's they are, and files of the user's.

A file of JSON lines has one item a line, in one of three layouts.

| columns                              | scored                          | metrics         |
|--------------------------------------|---------------------------------|-----------------|
| query, choices, gold                 | each choice behind the prompt   | acc, acc_norm   |
| context, continuation                | the continuation behind it      | acc, perplexity |
| context_options, continuation, gold  | the continuation behind each    | acc             |

gold counts from 0. A prompt shows `query` or `context` unless it is given; a choice or continuation follows it after
one space. acc of a single continuation is whether greedy decoding says it; acc_norm divides by its characters, as in
lm-evaluation-harness. Imports neither that nor torch: the planner checks files too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.schema import SuiteConf, TaskFileConf
from workers.errors import BadInputError
from workers.image_benchmarks import IMAGE_BENCHMARKS
from workers.image_questions import image_task, read_image_questions
from workers.item_checks import is_text, is_texts, shown_columns

Item = dict[str, Any]


@dataclass(frozen=True)
class TaskFile:
    """Checked items, with the columns they need and no others. prompt: null for contexts that are told apart."""

    layout: str  # choices | continuation | options
    prompt: str | None
    items: tuple[Item, ...]


def read_task_file(path: Path, prompt: str | None = None) -> TaskFile:
    """Read and check every line.

    Raises BadInputError naming the file, the line and what stands there instead: no file, no item, a line that is no
    JSON object, a column that is missing or of another kind, a gold that is no choice, a prompt that cannot be filled.
    """
    lines = _lines(path)
    layout = _layout(path, lines[0])
    template = prompt if prompt is not None or layout.text is None else f"{{{{{layout.text}}}}}"
    columns = [*layout.columns, *_prompt_columns(path, layout, template)]
    for number, item in lines:
        _check(path, number, item, layout, columns)
    return TaskFile(layout.name, template, tuple({c: item[c] for c in columns} for _, item in lines))


def check_own_task(path: Path, conf: TaskFileConf) -> None:
    """Read what a user wrote of a task. Raises BadInputError as the two readers do."""
    if conf.score is None:
        read_task_file(path, conf.prompt)
    else:
        read_image_questions(path, conf.score, conf.prompt)


def own_task(name: str, path: Path, conf: TaskFileConf) -> dict[str, Any]:
    """A task of the user's in the harness's words. Raises BadInputError as the two readers do."""
    if conf.score is None:
        return harness_task(name, read_task_file(path, conf.prompt))
    return image_task(name, read_image_questions(path, conf.score, conf.prompt))


def own_conf(suite: SuiteConf, task: str) -> TaskFileConf | None:
    """How a task of a suite is read: as the suite says, as a benchmark of images; null is a task of the harness's."""
    if task in suite.task_files:
        return suite.task_files[task]
    return TaskFileConf(score=IMAGE_BENCHMARKS[task].score) if task in IMAGE_BENCHMARKS else None


def image_tasks(suite: SuiteConf) -> list[str]:
    """The tasks of a suite that show images, as far as the suite itself says it."""
    return [task for task in suite.tasks if (conf := own_conf(suite, task)) is not None and conf.score is not None]


def task_file_key(task: str) -> str:
    """Under which a request holds the file or data set of a task, beside the texts of perplexities."""
    return f"task_files.{task}"


def harness_task(name: str, file: TaskFile) -> dict[str, Any]:
    """The task as lm-evaluation-harness takes it, without examples of other items in the prompt."""

    def items(**_metadata: object) -> dict[str, Any]:
        from datasets import Dataset  # here: the planner only checks

        return {"test": Dataset.from_list(list(file.items))}

    fields, metrics = _FIELDS[file.layout]
    task = {"task": name, "custom_dataset": items, "test_split": "test", "num_fewshot": 0, **fields}
    if file.prompt is not None:
        task["doc_to_text"] = file.prompt
    return task | {"metric_list": [{"metric": metric} for metric in metrics], "metadata": {"version": 1.0}}


# --- layouts ---------------------------------------------------------------------------------------------------------


def _is_choices(value: Any) -> bool:
    return is_texts(value, 2)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "query": (is_text, "a text"),
    "context": (is_text, "a text"),
    "continuation": (is_text, "a text"),
    "choices": (_is_choices, "a list of two or more texts"),
    "context_options": (_is_choices, "a list of two or more texts"),
    "gold": (_is_index, "a whole number, counted from 0"),
}


@dataclass(frozen=True)
class _Layout:
    """text: what the prompt shows by itself. choices: what gold counts."""

    name: str
    columns: tuple[str, ...]
    text: str | None = None
    choices: str | None = None


_LAYOUTS = (
    _Layout("choices", ("query", "choices", "gold"), "query", "choices"),
    _Layout("options", ("context_options", "continuation", "gold"), None, "context_options"),
    _Layout("continuation", ("context", "continuation"), "context"),
)
# In the harness's words; an int as doc_to_text tells it that the choices are contexts, and which of them is right.
_FIELDS: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "choices": (
        {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"},
        ("acc", "acc_norm"),
    ),
    "options": (
        {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
        },
        ("acc",),
    ),
    "continuation": (
        {"output_type": "loglikelihood", "doc_to_target": "{{' ' + continuation}}"},
        ("acc", "perplexity"),
    ),
}


def _layout(path: Path, first: tuple[int, Item]) -> _Layout:
    """The layout most of whose columns the first item has, so that one that is missing can be named."""
    number, item = first
    best = max(_LAYOUTS, key=lambda layout: sum(c in item for c in layout.columns) / len(layout.columns))
    if not any(c in item for c in best.columns):
        known = "; ".join(", ".join(layout.columns) for layout in _LAYOUTS)
        raise BadInputError(
            f"{path}, line {number}: columns {', '.join(item) or 'none'} are no known layout; known: {known}"
        )
    return best


# --- lines -----------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[tuple[int, Item]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}; a file of JSON lines is needed") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 ({error})") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInputError(f"{path}, line {number}: not JSON ({error}); one item a line is needed") from error
        if not isinstance(item, dict):
            raise BadInputError(f"{path}, line {number}: not a JSON object; one item a line is needed")
        found.append((number, item))
    if not found:
        raise BadInputError(f"{path}: no items")
    return found


def _check(path: Path, number: int, item: Item, layout: _Layout, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in item:
            raise BadInputError(f"{path}, line {number}: no `{column}`; every item needs {', '.join(columns)}")
        fits, kind = _KINDS.get(column, (lambda _: True, ""))
        if not fits(item[column]):
            raise BadInputError(f"{path}, line {number}: `{column}` is {json.dumps(item[column])[:80]}, not {kind}")
    if layout.choices is not None and item["gold"] >= len(item[layout.choices]):
        raise BadInputError(
            f"{path}, line {number}: gold {item['gold']} is none of the {len(item[layout.choices])} {layout.choices}, "
            "counted from 0"
        )


def _prompt_columns(path: Path, layout: _Layout, prompt: str | None) -> list[str]:
    """Columns that the prompt shows beside the layout's own."""
    if prompt is None:
        return []
    if layout.text is None:
        raise BadInputError(f"{path}: context_options are whole contexts; leave the prompt null")
    shown = shown_columns(path, prompt)
    if not shown:
        raise BadInputError(f"prompt of {path}: shows no column of an item: {prompt!r}; write {{{{{layout.text}}}}}")
    return sorted(shown - set(layout.columns))
