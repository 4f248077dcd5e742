"""vLLM as an evaluator, against Transformers: the same numbers however the weights got in, and no others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.workers.local_task import read_items
from tests.workers.test_harness import instance
from tests.workers.tiny_models import canary_of
from workers.canary import tolerance
from workers.harness import HarnessModel
from workers.transformers_evaluator import TransformersEvaluator

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.shared]
pytest.importorskip("vllm._version", reason="no vLLM in this environment")

RUN = Path(__file__).with_name("vllm_run.py")
CONTEXT = 2048
STOP_TOKENS = [1]


@pytest.fixture(scope="module")
def first(shared: Path) -> Path:
    return shared / "models" / "mini_reference"


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with every block linear rounded to 4 bits: what a reload has to tell apart."""
    directory = tmp_path_factory.mktemp("second")
    tensors = load_file(first / "model.safetensors")
    for name, weight in tensors.items():
        if weight.ndim == 2 and "layers" in name:
            scale = weight.abs().amax(1, keepdim=True) / 7
            tensors[name] = torch.round(weight / scale) * scale
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text((first / "config.json").read_text())
    return directory


@pytest.fixture(scope="module")
def given(shared: Path, first: Path, second: Path) -> dict[str, Any]:
    tokens = np.load(first / "tokens_held.npy").astype(np.int64)
    prompts = [tokens[i * 5000 : i * 5000 + 64].tolist() for i in range(8)]
    items = read_items(shared / "data" / "tasks" / "arc_easy.jsonl", 20)
    return {
        "first": str(first),
        "second": str(second),
        "small_heads": str(shared / "models" / "stories260k"),
        "canaries": {
            "first": canary_of(first, prompts).quantized,
            "second": canary_of(second, prompts).quantized,
        },
        "prompts": prompts,
        "tokens": str(first / "tokens_held.npy"),
        "stop_tokens": STOP_TOKENS,
        "pairs": [[f"{item['query']}\nAnswer:", f" {choice}"] for item in items for choice in item["choices"]],
        "context": CONTEXT,
        "whole_window": tokens[:CONTEXT].tolist(),
    }


@pytest.fixture(scope="module")
def outcome(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("run")
    source, destination = directory / "input.json", directory / "output.json"
    source.write_text(json.dumps(given))
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(RUN), str(source), str(destination)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    result: dict[str, Any] = json.loads(destination.read_text())
    return result


@pytest.fixture(scope="module")
def transformers(first: Path) -> TransformersEvaluator:
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(first, "float32", None, CONTEXT)
    return evaluator


def difference(found: list[list[float]], expected: list[list[float]]) -> float:
    return float(np.abs(np.array(found) - np.array(expected)).max())


def test_a_reload_scores_as_a_fresh_engine_does(outcome: dict[str, Any]) -> None:
    assert [outcome[step]["swap"] for step in ("first", "second", "first again")] == ["fresh", "reloaded", "reloaded"]
    assert outcome["first again"]["scores"] == outcome["first"]["scores"]
    assert outcome["second alone"]["swap"] == "fresh"
    assert outcome["second"]["scores"] == outcome["second alone"]["scores"]


def test_the_two_checkpoints_can_be_told_apart_in_every_dtype(given: dict[str, Any]) -> None:
    apart = np.abs(np.array(given["canaries"]["first"]) - np.array(given["canaries"]["second"])).mean()
    nll = -np.array(given["canaries"]["first"]).mean()
    assert apart / nll > 1.2 * tolerance("bfloat16")


def test_float32_scores_are_those_of_transformers(outcome: dict[str, Any], given: dict[str, Any]) -> None:
    for step, canary in (("first", "first"), ("second", "second")):
        assert difference(outcome[step]["scores"], given["canaries"][canary]) < 5e-5
        assert outcome[step]["difference"] < 5e-6


def test_bfloat16_rebuilds_the_engine_and_rounds(outcome: dict[str, Any]) -> None:
    assert outcome["bfloat16"]["swap"] == "rebuilt"
    assert 1e-3 < outcome["bfloat16"]["difference"] < 0.03


def test_a_reload_that_leaves_the_old_weights_is_followed_by_a_rebuild(outcome: dict[str, Any]) -> None:
    assert outcome["reload does nothing"]["swap"] == "rebuilt"
    assert outcome["reload does nothing"]["difference"] < 0.03
    assert set(outcome["reload does nothing"]["seconds"]) == {"reload", "canary", "engine"}


def test_perplexity_is_the_published_one(outcome: dict[str, Any]) -> None:
    assert outcome["perplexity"] == pytest.approx(20.88, abs=0.01)  # Transformers' own test asserts the same


def test_the_greedy_token_is_the_one_transformers_names(
    outcome: dict[str, Any], given: dict[str, Any], transformers: TransformersEvaluator
) -> None:
    assert outcome["greedy"] == [s.is_argmax.tolist() for s in transformers.score(given["prompts"])]


def test_continuations_are_those_of_transformers(
    outcome: dict[str, Any], given: dict[str, Any], transformers: TransformersEvaluator
) -> None:
    prompts = [p[:20] for p in given["prompts"][:2]]
    assert outcome["continuations"] == transformers.generate(prompts, 12, STOP_TOKENS)


def test_task_log_likelihoods_are_those_of_transformers(
    outcome: dict[str, Any], given: dict[str, Any], transformers: TransformersEvaluator, first: Path
) -> None:
    model = HarnessModel(transformers, AutoTokenizer.from_pretrained(first))
    expected = model.loglikelihood([instance("loglikelihood", *pair) for pair in given["pairs"]])
    np.testing.assert_allclose([x[0] for x in outcome["log_likelihoods"]], [x[0] for x in expected], atol=1e-4)
    assert [x[1] for x in outcome["log_likelihoods"]] == [x[1] for x in expected]


def test_a_window_may_fill_the_whole_context(
    outcome: dict[str, Any], given: dict[str, Any], transformers: TransformersEvaluator
) -> None:
    assert outcome["whole context"]["swap"] == "rebuilt"
    (expected,) = transformers.score([given["whole_window"]])
    assert len(outcome["whole window"]) == CONTEXT - 1
    np.testing.assert_allclose(outcome["whole window"], expected.logprobs, atol=1e-4)


def test_wrong_weights_are_a_parity_error_with_numbers(outcome: dict[str, Any]) -> None:
    kind, message = outcome["wrong weights"]
    assert kind == "ParityError"
    assert "vllm 0.32" in message and "nats on average" in message and "engine=transformers" in message


def test_a_head_size_the_engine_cannot_do_is_an_engine_error(outcome: dict[str, Any]) -> None:
    kind, message = outcome["head size 8"]
    assert kind == "EngineError" and "Unsupported CPU attention" in message


def test_an_engine_that_failed_is_replaced(outcome: dict[str, Any]) -> None:
    assert outcome["after a failure"]["swap"] == "fresh"
    assert outcome["after a failure"]["scores"] == outcome["first"]["scores"]


def test_nothing_is_compiled(outcome: dict[str, Any]) -> None:
    assert outcome["compiled_frames"] == 0
