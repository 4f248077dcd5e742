"""A cell's two keys: what enters them, what does not, and that they are the same on every machine and day."""

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import (
    BlockTune,
    CellConf,
    FloatScheme,
    GptqRound,
    LaneConf,
    MethodConf,
    MixedScheme,
    NearestRound,
    RmsClip,
    UniformScheme,
)
from orchestrator.cell import evaluate_payload, label, quantize_payload
from tests.orchestrator.hand_made import ENGINE, MODEL, TEXT, TEXTS, make_cell, make_config
from workers.api import ModelRef, TextRef
from workers.canonical import key_of

REPOSITORY = Path(__file__).parents[2]

# Pinned: every checkpoint and row that users have is found by these numbers. They may change only together with what a
# cell computes: a recipe number was raised, a field entered the payload, a default of conf/schema.py was changed.
# A change of code that should leave all numbers alone must leave these alone too.
QUANTIZE_KEY = "a45e8bf62e513fc8d5661195771e7f99f8f5cfefb8253996a54a37b95f002063"
EVALUATE_KEY = "a51637fb812136e06e02fc2c6f84822a8d03457d6f190116ef9b0f8ec8bb6867"

# Fields of the nodes in the key that only name things or say where they lie.
NO_IDENTITY = {
    "method.name",
    "method.category",
    "method.published",
    "method.published_at",
    "calibration.name",
    "calibration.path",
    "calibration.source",  # enters with the resolved text, below
    "calibration.experts",  # enters where there are experts, below
    "calibration.prompt",  # enters where there are images, below
}


def quantize_key(config: CellConf, model: ModelRef = MODEL, text: TextRef = TEXT) -> str:
    return key_of(quantize_payload(config, model, text))


def fields(node: Any, path: str = "") -> Iterator[str]:
    """Paths of all values under a dataclass, `method.round.damping`."""
    for field in dataclasses.fields(node):
        value, where = getattr(node, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{where}.")
        else:
            yield where


def changed(config: CellConf, path: str) -> CellConf:
    """A copy in which one value is another one of its type."""
    copied = copy.deepcopy(config)
    *parents, last = path.split(".")
    node: Any = copied
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, last, another(getattr(node, last)))
    return copied


def another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case None:
            return 7
        case [] | [*_]:
            return [*value, "x"]
        case {}:
            return {**value, "2": ["x"]}
    raise TypeError(f"no other value than {value!r}")


CONFIGS = [
    make_config(),
    replace(make_config(), method=MethodConf("m", "c", tune=BlockTune(learns=["clip"]), clip=RmsClip())),
    replace(make_config(), scheme=MixedScheme(bits=2)),
]
IN_QUANTIZE_KEY = [
    (config, f"{node}.{field}".rstrip("."))
    for config in CONFIGS
    for node in ("method", "scheme", "calibration", "numerics")
    for field in fields(getattr(config, node))
]


# --- stability -------------------------------------------------------------------------------------------------------


def test_the_keys_of_a_fixed_cell_are_what_they_have_always_been() -> None:
    cell = make_cell()
    assert (cell.quantize_key, cell.evaluate_key) == (QUANTIZE_KEY, EVALUATE_KEY)


def test_keys_are_the_same_in_another_process_with_another_hash_seed() -> None:
    program = "from tests.orchestrator.hand_made import make_cell as m; print(m().quantize_key, m().evaluate_key)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [make_cell().quantize_key, make_cell().evaluate_key]


def test_the_payload_beside_a_key_explains_it() -> None:
    cell = make_cell()
    payload = dict(cell.payload)
    quantize = payload.pop("quantize")
    assert key_of(payload) == cell.evaluate_key
    assert key_of(quantize) == cell.quantize_key == payload["quantize_key"]
    assert quantize["method"]["round"] == {"kind": "GptqRound", **vars(GptqRound())}
    assert quantize["recipes"]["GptqRound"] >= 1


# --- what enters -----------------------------------------------------------------------------------------------------


@given(where=st.sampled_from(IN_QUANTIZE_KEY))
def test_every_field_that_may_change_numbers_changes_the_key(where: tuple[CellConf, str]) -> None:
    config, path = where
    same = quantize_key(changed(config, path)) == quantize_key(config)
    assert same is (path in NO_IDENTITY), path


def test_what_becomes_of_experts_enters_where_there_are_any() -> None:
    config = make_config()
    other = changed(config, "calibration.experts")
    for architecture, same in (("llama", True), ("mamba", True), ("mixtral", False), ("deepseek_moe", False)):
        model = replace(MODEL, architecture=architecture)
        assert (quantize_key(config, model) == quantize_key(other, model)) is same


def test_the_prompt_of_questions_enters_where_there_are_images() -> None:
    config = make_config()
    other = changed(config, "calibration.prompt")
    for source, same in (("text", True), ("images", False)):
        text = replace(TEXT, source=source)
        assert (quantize_key(config, text=text) == quantize_key(other, text=text)) is same


def test_every_field_of_a_cell_is_covered_by_some_test_here() -> None:
    nodes = {field.name for field in dataclasses.fields(CellConf)}
    assert nodes == {"model", "method", "scheme", "calibration", "suite", "lane", "numerics", "engine", "seed"}


def test_the_seed_changes_the_key() -> None:
    assert quantize_key(replace(make_config(), seed=1)) != quantize_key(make_config())


def test_the_class_of_a_slot_changes_the_key_even_where_its_fields_are_the_same() -> None:
    config = make_config()
    nearest = replace(config, method=replace(config.method, round=NearestRound()))
    assert quantize_key(nearest) != quantize_key(config)


@pytest.mark.parametrize("field", ["fingerprint", "tokenizer"])
def test_what_the_model_is_changes_the_key(field: str) -> None:
    assert quantize_key(make_config(), replace(MODEL, **cast(Any, {field: "another"}))) != quantize_key(make_config())


@pytest.mark.parametrize("field", ["name", "repo", "directory", "revision"])
def test_what_the_model_is_called_and_where_it_lies_does_not(field: str) -> None:
    assert quantize_key(make_config(), replace(MODEL, **cast(Any, {field: "another"}))) == quantize_key(make_config())


def test_a_text_enters_with_its_content_not_its_path() -> None:
    key = quantize_key(make_config())
    assert quantize_key(make_config(), text=replace(TEXT, location="/elsewhere/text.txt")) == key
    assert quantize_key(make_config(), text=replace(TEXT, fingerprint="sha256:ffff")) != key
    assert quantize_key(make_config(), text=replace(TEXT, source="c4")) != key


@pytest.mark.parametrize("change", [{"lane": LaneConf("published", published=True)}, {"engine": "vllm"}])
def test_lane_and_engine_leave_the_checkpoint_alone(change: dict[str, Any]) -> None:
    assert quantize_key(replace(make_config(), **change)) == quantize_key(make_config())


def test_what_is_scored_leaves_the_checkpoint_alone() -> None:
    config = make_config()
    more = replace(config, suite=replace(config.suite, tasks=["piqa", "boolq"]))
    assert quantize_key(more) == quantize_key(config)
    assert make_cell(more).evaluate_key != make_cell(config).evaluate_key


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"name": "other"}, False),
        ({"path": "other"}, False),
        ({"task_path": "other"}, False),  # enters with the content of its files
        ({"averages": {"a": ["piqa.acc"]}}, False),  # a view of what is stored
        ({"dtype": "float16"}, False),  # enters with the engine's dtype
        ({"sequence_length": 16}, True),
        ({"tasks": []}, True),
        ({"limit": 8}, True),
    ],
)
def test_the_suite_enters_the_row_by_what_is_scored(change: dict[str, Any], differs: bool) -> None:
    suite = make_config().suite
    key = key_of(evaluate_payload("q", suite, TEXTS, ENGINE))
    assert (key_of(evaluate_payload("q", replace(suite, **change), TEXTS, ENGINE)) != key) is differs


def test_texts_and_task_files_enter_the_row_by_content() -> None:
    suite = make_config().suite
    key = key_of(evaluate_payload("q", suite, TEXTS, ENGINE))
    moved = {"held_out": replace(TEXTS["held_out"], location="/elsewhere")}
    other = {"held_out": replace(TEXTS["held_out"], fingerprint="sha256:ffff")}
    tasks = TEXTS | {"tasks": TextRef("tasks", "/tasks", "sha256:1")}
    assert key_of(evaluate_payload("q", suite, moved, ENGINE)) == key
    assert key_of(evaluate_payload("q", suite, other, ENGINE)) != key
    assert key_of(evaluate_payload("q", suite, tasks, ENGINE)) != key


@pytest.mark.parametrize(
    ("field", "differs"),
    [("name", True), ("version", True), ("dtype", True), ("weight_format", True), ("reason", False)],
)
def test_the_engine_enters_the_row(field: str, differs: bool) -> None:
    suite = make_config().suite
    other = replace(ENGINE, **{field: "another"})
    same = key_of(evaluate_payload("q", suite, TEXTS, other)) == key_of(evaluate_payload("q", suite, TEXTS, ENGINE))
    assert same is not differs


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "assignment", "expected"),
    [
        ({}, {}, "tiny gptq w3 g32"),
        ({"scheme": UniformScheme(bits=4)}, {}, "tiny gptq w4"),
        ({"scheme": FloatScheme()}, {"method": "none"}, "tiny gptq w16"),
        ({"seed": 2}, {}, "tiny gptq w3 g32 s2"),
        ({}, {"seed": "0"}, "tiny gptq w3 g32 s0"),
        ({"lane": LaneConf("published", published=True)}, {}, "tiny gptq w3 g32 published"),
        ({}, {"method.round.damping": "0.1"}, "tiny gptq w3 g32 damping=0.1"),
        ({}, {"clip@method.clip": "mse", "scheme.bits": "3"}, "tiny gptq w3 g32 clip=mse"),
    ],
)
def test_a_label_says_what_varies(change: dict[str, Any], assignment: dict[str, str], expected: str) -> None:
    assert label(replace(make_config(), **change), MODEL, assignment) == expected
