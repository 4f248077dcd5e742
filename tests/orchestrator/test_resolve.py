"""Points to cells: files found and hashed, effective values filled in, and every refusal before anything starts."""

import dataclasses
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from conf.errors import ConfigError
from conf.schema import NodeConf
from orchestrator import resolve as resolving
from orchestrator.cell import Cell, CellStatus
from orchestrator.cost_model import assumed_node
from orchestrator.models import resolve_model
from orchestrator.resolve import resolve
from orchestrator.sweep import expand
from orchestrator.texts import resolve_text
from tests.orchestrator.hand_made import write_checkpoint, write_text

pytestmark = pytest.mark.usefixtures("quick_composition")
NODES = [assumed_node(2, 16.0)]
GPU_NODE = NodeConf(num_gpus=1, gpu_memory_gib=80.0, num_cpus=16, memory_gib=128.0, flops=1e14, bandwidth=1e12)


def cells(overrides: list[str], nodes: list[NodeConf] | None = None) -> list[Cell]:
    return resolve(expand(overrides), nodes or NODES, online=False)


def changed(overrides: list[str], *changes: str) -> list[str]:
    """A command line in which some keys have other values, and new ones come behind."""
    given = dict(text.split("=", 1) for text in overrides) | dict(text.split("=", 1) for text in changes)
    return [f"{key}={value}" for key, value in given.items()]


def refusal(overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as refused:
        cells(overrides)
    return str(refused.value)


# --- what a cell becomes ---------------------------------------------------------------------------------------------


def test_a_cell_has_everything_resolved(mine: list[str], checkpoint: Path) -> None:
    (cell,) = cells(mine)
    assert (cell.model.name, cell.model.directory, cell.shape.hidden_size) == ("tiny", str(checkpoint), 64)
    assert cell.calibration_text.location == str(checkpoint.parent / "text.txt")
    assert cell.texts["text"].fingerprint == cell.calibration_text.fingerprint
    assert (cell.engine.name, cell.engine.dtype, cell.engine.weight_format) == ("transformers", "float32", "dense")
    assert cell.config.numerics.device == "cpu"
    assert (cell.label, cell.support, cell.notes) == ("tiny rtn w3", None, ())


def test_a_tokenizer_that_ends_texts_otherwise_is_noted(mine: list[str], checkpoint: Path) -> None:
    """config.json may be wrong too, so that nothing is refused."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"bos_token_id": 1, "eos_token_id": [0, 2]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    ends = checkpoint / "tokenizer_config.json"
    ends.write_text(json.dumps({"bos_token": "a", "eos_token": {"content": "b"}}))
    assert cells(mine)[0].notes == ()
    ends.write_text(json.dumps({"bos_token": "b", "eos_token": "a"}))
    (note,) = cells(mine)[0].notes
    assert "tiny's config.json says bos_token_id=1, but b is 2; eos_token_id=[0, 2], but a is 1" in note


def test_words_that_were_added_may_lie_beyond_the_embedding(mine: list[str], checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens([f"<extra{i}>" for i in range(130)])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    assert cells(mine)[0].support is None


def test_keys_do_not_know_where_files_lie(mine: list[str], checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "tiny")
    text = shutil.copy(tmp_path / "text.txt", tmp_path / "elsewhere" / "other.txt")
    paths = [f"{node}.path=elsewhere/other.txt" for node in ("calibration", "suite")]
    moved = changed(mine, "model.repo=./elsewhere/tiny", *paths)
    assert [c.key for c in cells(moved)] == [c.key for c in cells(mine)]
    Path(text).write_text("b " + Path(text).read_text())
    assert [c.quantize_key for c in cells(moved)] != [c.quantize_key for c in cells(mine)]


def test_windows_are_cut_to_the_models_context_and_the_user_is_told(mine: list[str]) -> None:
    (cut,) = cells(changed(mine, "calibration.sequence_length=128", "suite.sequence_length=100"))
    assert (cut.config.calibration.sequence_length, cut.config.suite.sequence_length) == (64, 64)
    assert cut.notes == (
        "calibration.sequence_length 128 -> 64, tiny's context",
        "suite.sequence_length 100 -> 64, tiny's context",
    )
    (asked,) = cells(changed(mine, "calibration.sequence_length=64", "suite.sequence_length=64"))
    assert (asked.key, asked.quantize_key, asked.notes) == (cut.key, cut.quantize_key, ())


def test_given_tokens_are_never_cut(mine: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.ones((2, 96), dtype=np.int64))
    tokens = changed(mine, "calibration=tokens", "calibration.path=tokens.npy", "calibration.sequence_length=96")
    (cell,) = cells(tokens)
    assert (cell.config.calibration.sequence_length, cell.notes) == (96, ())


def test_the_device_is_that_of_the_cluster(mine: list[str]) -> None:
    auto = changed(mine, "numerics.device=auto")
    assert cells(auto)[0].config.numerics.device == "cpu"
    assert cells(auto, [GPU_NODE])[0].config.numerics.device == "cuda"
    assert cells(auto)[0].quantize_key != cells(auto, [GPU_NODE])[0].quantize_key


def test_the_baseline_is_scored_from_its_own_files(mine: list[str]) -> None:
    (cell,) = cells(changed(mine, "method=none"))
    assert (cell.engine.weight_format, cell.label) == ("source", "tiny none w16")


def test_the_engines_version_is_part_of_the_row_only(mine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = cells(mine)[0]
    monkeypatch.setattr(resolving, "_version", lambda engine: "99")
    after = cells(mine)[0]
    assert (after.quantize_key == before.quantize_key, after.key == before.key) == (True, False)


def test_task_files_enter_by_content(mine: list[str], tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    (tasks / "__pycache__").mkdir(parents=True)
    (tasks / "mine.yaml").write_text("task: mine")
    written = changed(mine, "suite.task_path=tasks", "suite.tasks=[mine]")
    before = cells(written)[0].key
    (tasks / "__pycache__" / "x.pyc").write_text("compiled")
    assert cells(written)[0].key == before
    (tasks / "mine.yaml").write_text("task: mine\nnum_fewshot: 1")
    assert cells(written)[0].key != before


def test_items_enter_by_content_and_only_those_of_tasks_that_run(mine: list[str], tmp_path: Path) -> None:
    item = '{"query": "a", "choices": ["b", "c"], "gold": 1}\n'
    (tmp_path / "items.jsonl").write_text(item)
    written = changed(mine, "suite=task_file", "suite.path=items.jsonl")
    before = cells(written)[0]
    assert before.texts["task_files.items"].location == str(tmp_path / "items.jsonl")
    prompted = cells([*written, "suite.task_files.items.prompt='{{query}}?'"])[0]
    (tmp_path / "items.jsonl").write_text(item * 2)
    after = cells(written)[0]
    assert len({before.key, prompted.key, after.key}) == 3
    assert before.quantize_key == prompted.quantize_key == after.quantize_key
    (unused,) = cells([*written, "suite.tasks=[piqa]"])
    assert "task_files.items" not in unused.texts and "items" not in unused.payload


def test_benchmarks_about_images_are_the_hub_s_where_the_suite_has_no_folder() -> None:
    (cell,) = cells(["model=llava1.5-7b", "method=none", "suite=paper_images"], [GPU_NODE])
    assert cell.texts["task_files.gqa"].fingerprint == "lmms-lab/GQA@unresolved/testdev_balanced_instructions/testdev"
    assert {task: conf["score"] for task, conf in cell.payload["items"].items()} == {
        "scienceqa": "option_letter",
        "textvqa": "vqa_accuracy",
        "pope": "yes_no",
        "gqa": "exact_match",
    }


def test_benchmarks_about_images_are_refused_for_a_model_that_sees_none(mine: list[str]) -> None:
    with pytest.raises(ConfigError, match="some show images, and llama sees none"):
        cells(changed(mine, "suite.tasks=[pope]"))


def test_points_that_are_one_cell_give_one(mine: list[str]) -> None:
    """The published recipe of a method without one is the unified lane's."""
    assert len(expand([*mine, "lane=unified,published"]).points) == 2
    (cell,) = cells([*mine, "lane=unified,published"])
    assert (cell.config.lane.name, cell.other_lanes) == ("unified", ("published",))
    (alone,) = cells(mine)
    assert (alone.key, alone.other_lanes) == (cell.key, ())


def test_each_file_is_read_once_however_many_cells_there_are(mine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def model(conf: object, *, online: bool) -> object:
        asked.append("model")
        return resolve_model(conf, online=online)  # type: ignore[arg-type]

    def text(source: str, path: str | None, *, split: str, online: bool) -> object:
        asked.append(split)
        return resolve_text(source, path, split=split, online=online)  # type: ignore[arg-type]

    monkeypatch.setattr(resolving, "resolve_model", model)
    monkeypatch.setattr(resolving, "resolve_text", text)
    assert len(cells([*mine, "bits=2,3,4", "seed=0,1"])) == 6
    assert sorted(asked) == ["model", "test", "train"]


@pytest.mark.usefixtures("awq_not_built")
def test_planning_the_papers_grid_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    models = "model=llama2-7b,mixtral-8x7b,mamba-1.4b,llava1.5-7b"
    found = cells(["experiment=paper", models, "method=none,gptq,awq", "bits=3"], [GPU_NODE])
    assert len(found) == 4 * 3
    assert {c.model.fingerprint for c in found if c.model.name == "llama2-7b"} == {
        "meta-llama/Llama-2-7b-hf@unresolved"
    }
    assert {c.support for c in found if c.config.method.name == "awq"} == {CellStatus.NOT_IMPLEMENTED}


# --- what is refused before anything starts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["group_size=48"], "group_size=48 does not divide the 64 inputs of self_attn.q_proj; nearest valid: 16, 32"),
        (["group_size=128"], "group_size=128 does not divide"),
        (["bits=9"], "scheme.bits=9: a code is one byte"),
        (["calibration.sequence_length=64", "calibration.num_sequences=0"], "calibration.num_sequences=0"),
        (["suite.sequence_length=1"], "suite.sequence_length=1: a window of two tokens is needed"),
        (["engine=vlm"], "engine=vlm: unknown. did you mean vllm? Valid: auto, vllm, transformers"),
        (["numerics.device=gpu"], "numerics.device=gpu: unknown. did you mean cpu?"),
        (["numerics.dtype=float33"], "numerics.dtype=float33: unknown. did you mean float32?"),
        (["suite.dtype=half"], "suite.dtype=half: unknown"),
        (["scheme.scale_dtype=float8"], "scheme.scale_dtype=float8"),
        (["seed=-1"], "seed=-1: 0 to 4294967295"),
        (["suite.limit=0"], "suite.limit=0: at least 1"),
        (["suite.task_path=/no/such"], "suite.task_path=/no/such: no such directory"),
        (["calibration.path=/no/such.txt"], "calibration.path=/no/such.txt: no file"),
        (["method=none", "scheme=uniform"], "nothing is rounded"),
    ],
)
def test_what_no_cell_can_have_is_refused(mine: list[str], changes: list[str], said: str) -> None:
    assert said in refusal(changed(mine, *changes))


@pytest.mark.usefixtures("awq_not_built")
@pytest.mark.parametrize("change", ["engine=vlm", "numerics.dtype=f", "suite.dtype=f", "seed=-1"])
def test_values_are_checked_for_methods_that_are_not_built_too(mine: list[str], change: str) -> None:
    assert change in refusal(changed(mine, "method=awq", change))


def test_a_size_without_a_hadamard_matrix_is_refused(mine: list[str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "odd", intermediate_size=92)
    odd = changed(mine, "model.repo=./odd", "method=quarot")
    assert "an intermediate of 92: no Hadamard matrix of size 92 can be made" in refusal(odd)
    cells(changed(odd, "method.rotate.intermediate=false"))


def test_a_text_shorter_than_a_window_is_refused(mine: list[str], tmp_path: Path) -> None:
    short = write_text(tmp_path / "short.txt", 30)  # and one that a tokenizer may set before them
    said = refusal(changed(mine, "suite.path=short.txt"))
    assert f"suite.perplexity.text, {short}" in said and "less than a window of 32" in said
    said = refusal(changed(mine, "calibration.path=short.txt"))
    assert "random windows of 32 need at least 33" in said
    write_text(tmp_path / "enough.txt", 33)
    cells(changed(mine, "suite.path=enough.txt", "calibration.path=enough.txt"))


@pytest.mark.parametrize(("shape", "said"), [((2, 16), "16"), ((1, 32), "1"), ((64,), "[64]")])
def test_tokens_that_do_not_fill_the_windows_are_refused(
    mine: list[str], tmp_path: Path, shape: tuple[int, ...], said: str
) -> None:
    np.save(tmp_path / "tokens.npy", np.ones(shape, dtype=np.int64))
    tokens = changed(mine, "calibration=tokens", "calibration.path=tokens.npy")
    assert said in refusal(tokens)


def test_a_suite_that_scores_nothing_is_refused(mine: list[str]) -> None:
    sweep = expand(mine)
    (point,) = sweep.points
    config = replace(point.config, suite=replace(point.config.suite, perplexity={}))
    with pytest.raises(ConfigError, match="scores nothing"):
        resolve(replace(sweep, points=(replace(point, config=config),)), NODES, online=False)


def test_all_problems_are_said_at_once_and_each_once(mine: list[str]) -> None:
    said = refusal(changed(mine, "group_size=48,63", "method=rtn,gptq", "bits=2,9", "seed=0,1"))
    lines = said.splitlines()
    assert len(lines) == len(set(lines))
    for words in ("rtn: group_size=48", "gptq: group_size=48", "rtn: group_size=63", "rtn: scheme.bits=9"):
        assert any(words in line for line in lines)


def test_a_flood_of_problems_is_cut(mine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "MAX_PROBLEMS_SHOWN", 2)
    said = refusal(changed(mine, "group_size=33,34,35,36,37"))
    assert len(said.splitlines()) == 3
    assert said.endswith("... and 3 more")


@pytest.mark.usefixtures("awq_not_built")
def test_a_group_size_of_a_method_that_is_not_built_is_no_refusal(mine: list[str]) -> None:
    (cell,) = cells(changed(mine, "method=awq", "group_size=48"))
    assert cell.support is CellStatus.NOT_IMPLEMENTED


def test_columns_that_fill_no_vector_are_refused_by_the_plan(mine: list[str], tmp_path: Path) -> None:
    assert cells(changed(mine, "method=quip_sharp"))[0].support is None
    write_checkpoint(tmp_path / "narrow", intermediate_size=100)
    said = refusal(changed(mine, "method=quip_sharp", "model.repo=./narrow"))
    assert "codes 8 columns together, which do not divide the 100 inputs of mlp.down_proj" in said


def test_a_cell_is_plain_frozen_data(mine: list[str]) -> None:
    (cell,) = cells(mine)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cell.label = "x"  # type: ignore[misc]
