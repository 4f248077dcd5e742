"""Tasks from JSON lines: what is read, what is refused with its line, what the harness makes of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import lm_eval.tasks
import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conf import register
from tests.workers.test_canary import ShiftedEvaluator
from tests.workers.tiny_requests import write_tokenizer
from workers.api import Metric
from workers.errors import BadInputError
from workers.evaluator import TokenScores
from workers.harness import run_tasks
from workers.task_files import harness_task, read_task_file
from workers.transformers_evaluator import TransformersEvaluator
from workers.zoo import zoo_path

CHOICE = {"query": "t1", "choices": ["t2", "t3"], "gold": 1}
CONTINUATION = {"context": "t1 t2", "continuation": "t3"}
OPTIONS = {"context_options": ["t4", "t5"], "continuation": "t1 t1", "gold": 0}


def write(path: Path, *items: Any) -> Path:
    path.write_text("".join(f"{item if isinstance(item, str) else json.dumps(item)}\n" for item in items))
    return path


class PreferringEvaluator(ShiftedEvaluator):
    """Token i has log-probability -1 / (1 + i): the larger, the likelier. Even ones are greedy."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.max_length = 64

    def score(self, prompts: Sequence[Sequence[int]]) -> list[TokenScores]:
        return [
            TokenScores(-1.0 / (1.0 + np.array(p[1:], dtype=np.float64)), np.array(p[1:]) % 2 == 0) for p in prompts
        ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Word tN is token N."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, 128)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    loaded.add_special_tokens({"eos_token": "t0", "bos_token": "t0"})
    return loaded


def scored(path: Path, tokenizer: PreTrainedTokenizerBase, prompt: str | None = None) -> dict[str, Metric]:
    task = harness_task("mine", read_task_file(path, prompt))
    found = run_tasks(PreferringEvaluator(), tokenizer, ["mine"], None, limit=None, own={"mine": task})
    return {metric.name: metric for metric in found}


def test_the_likelier_choice_is_the_answer(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path / "x.jsonl", CHOICE, CHOICE | {"gold": 0}, CHOICE | {"choices": ["t2", "t5", "t4"]})
    found = scored(path, tokenizer)
    assert sorted(found) == ["mine.acc", "mine.acc_norm"]
    assert found["mine.acc"].value == pytest.approx(2 / 3)
    assert found["mine.acc"].num_examples == 3


def test_acc_norm_divides_by_characters(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """-1/3 - 1/3 over five characters is less than -1/4 over two, alone it is worse."""
    path = write(tmp_path / "x.jsonl", CHOICE | {"choices": ["t3", "t2   t2"], "gold": 1})
    found = scored(path, tokenizer)
    assert (found["mine.acc"].value, found["mine.acc_norm"].value) == (0.0, 1.0)


def test_a_continuation_is_right_when_greedy_decoding_says_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path / "x.jsonl", CONTINUATION, CONTINUATION | {"continuation": "t4"})
    found = scored(path, tokenizer)
    assert found["mine.acc"].value == 0.5
    assert found["mine.perplexity"].value == pytest.approx(np.exp((1 / 4 + 1 / 5) / 2))


def test_options_are_contexts_of_one_continuation(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Both contexts leave the continuation as likely here; the first of equals is taken."""
    found = scored(write(tmp_path / "x.jsonl", OPTIONS, OPTIONS | {"gold": 1}), tokenizer)
    assert {name: metric.value for name, metric in found.items()} == {"mine.acc": 0.5}


def test_a_prompt_shows_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", CHOICE | {"hint": "t9", "other": {"a": 1}})
    file = read_task_file(path, "{{hint}} {{query}}\nAnswer:")
    assert file.prompt == "{{hint}} {{query}}\nAnswer:"
    assert file.items == ({**CHOICE, "hint": "t9"},)


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    assert len(read_task_file(write(tmp_path / "x.jsonl", CHOICE, "", CHOICE)).items) == 2


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "x.jsonl: no items"),
        (["{"], "x.jsonl, line 1: not JSON .*; one item a line"),
        ([CHOICE, "", "[1]"], "x.jsonl, line 3: not a JSON object"),
        ([{"text": "a"}], "line 1: columns text are no known layout; known: query, choices, gold; "),
        (["{}"], "line 1: columns none are no known layout"),
        ([CHOICE, {"query": "a", "gold": 0}], "line 2: no `choices`; every item needs query, choices, gold"),
        ([{"query": "a", "choices": ["b", "c"]}], "line 1: no `gold`"),
        ([{"context": "a"}], "line 1: no `continuation`"),
        ([{"context_options": ["a", "b"], "gold": 0}], "line 1: no `continuation`"),
        ([CHOICE | {"query": 3}], "line 1: `query` is 3, not a text"),
        ([CHOICE | {"query": " "}], '`query` is " ", not a text'),
        ([CHOICE | {"choices": "ab"}], "not a list of two or more texts"),
        ([CHOICE | {"choices": ["a"]}], "not a list of two or more texts"),
        ([CHOICE | {"choices": ["a", ""]}], "not a list of two or more texts"),
        ([CHOICE | {"gold": "1"}], "not a whole number, counted from 0"),
        ([CHOICE | {"gold": True}], "not a whole number, counted from 0"),
        ([CHOICE | {"gold": -1}], "not a whole number, counted from 0"),
        ([CHOICE, CHOICE | {"gold": 2}], "line 2: gold 2 is none of the 2 choices"),
        ([OPTIONS | {"gold": 2}], "gold 2 is none of the 2 context_options"),
    ],
)
def test_an_item_that_cannot_be_scored_is_named_with_its_line(tmp_path: Path, items: list[Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        read_task_file(write(tmp_path / "x.jsonl", *items))


@pytest.mark.parametrize(
    ("item", "prompt", "said"),
    [
        (CHOICE, "{{query", "not Jinja"),
        (CHOICE, "Answer:", r"shows no column .*write \{\{query\}\}"),
        (CHOICE, "{{qery}}", "line 1: no `qery`"),
        (OPTIONS, "{{continuation}}", "context_options are whole contexts; leave the prompt null"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(
    tmp_path: Path, item: dict[str, Any], prompt: str, said: str
) -> None:
    with pytest.raises(BadInputError, match=said):
        read_task_file(write(tmp_path / "x.jsonl", item), prompt)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"x\.jsonl: (No such file|not UTF-8)"):
        read_task_file(path)


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
def test_every_file_of_the_suite_is_scored_by_the_mini_model(shared: Path) -> None:
    """Four items of each: from the suite's YAML over the files to metrics under the harness's names."""
    with register.hydra_context():
        suite = register.compose(["suite=task_files", f"suite.path={shared / 'data' / 'tasks'}"]).root.suite
    model = zoo_path("mini_llama")
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(model, "float32", None, 512)
    own = {
        task: harness_task(task, read_task_file(Path(str(file.path)), file.prompt))
        for task, file in suite.task_files.items()
    }
    metrics = run_tasks(evaluator, AutoTokenizer.from_pretrained(model), suite.tasks, None, limit=4, own=own)
    names = [metric.name for metric in metrics]
    choices = [
        f"{task}.{m}"
        for task in ("arc_challenge", "arc_easy", "boolq", "openbookqa", "piqa")
        for m in ("acc", "acc_norm")
    ]
    assert sorted(names) == sorted([*choices, "lambada_openai.acc", "lambada_openai.perplexity", "winogrande.acc"])
    assert all(metric.num_examples == 4 for metric in metrics)
    fractions = [metric.value for metric in metrics if metric.unit == "fraction"]
    assert all(value * 4 == round(value * 4) for value in fractions) and len(fractions) == 12


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "theirs", "column", "prefix"),
    [
        ("arc_challenge", "arc/arc_easy.yaml", "question", "Question: "),  # which the harness's own includes
        ("arc_easy", "arc/arc_easy.yaml", "question", "Question: "),
        ("openbookqa", "openbookqa/openbookqa.yaml", "question_stem", ""),
        ("piqa", "piqa/piqa.yaml", "goal", "Question: "),
    ],
)
def test_prompts_are_those_of_the_harness(task: str, theirs: str, column: str, prefix: str, shared: Path) -> None:
    """Both templates, filled with a real item; the file's query is the original's column behind `prefix`."""
    with register.hydra_context():
        suite = register.compose(["suite=task_files", f"suite.path={shared / 'data' / 'tasks'}"]).root.suite
    file = suite.task_files[task]
    ours = read_task_file(Path(str(file.path)), file.prompt)
    template = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / theirs).read_text())["doc_to_text"]
    template = template if "{" in template else f"{{{{{template}}}}}"
    assert ours.prompt is not None
    for item in ours.items[:20]:
        original = {column: item["query"].removeprefix(prefix).rstrip("\n")}
        assert jinja2.Template(ours.prompt).render(item) == jinja2.Template(template).render(original)
