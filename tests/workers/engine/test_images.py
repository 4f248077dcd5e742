"""LLaVA and VILA under vLLM, against Transformers: text and answers to pictures, and weights swapped in place."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workers.test_transformers_images import prompt
from tests.workers.tiny_llava import VOCAB_SIZE, write_llava
from tests.workers.tiny_models import random_prompts
from tests.workers.tiny_vila import write_vila
from workers.export import ordinary
from workers.transformers_evaluator import TransformersEvaluator

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm._version", reason="no vLLM in this environment")

RUN = Path(__file__).with_name("images_run.py")
CONTEXT, MAX_NEW_TOKENS = 64, 8
PROMPTS = random_prompts(4, 24, VOCAB_SIZE)
QUESTIONS = [(seed, "t5 t6 t7") for seed in range(6)]
HEAD_DIM = 32  # one that vLLM's attention can do on a CPU


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two of each kind, whose weights differ."""
    root = tmp_path_factory.mktemp("models")
    with ExitStack() as stack:
        yield {
            f"{kind} {seed}": stack.enter_context(ordinary(write(root / f"{kind}{seed}", seed=seed, head_dim=HEAD_DIM)))
            for kind, write in (("llava", write_llava), ("vila", write_vila))
            for seed in range(2)
        }


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> dict[str, Any]:
    evaluator, result = TransformersEvaluator(device="cpu"), {}
    for name, directory in models.items():
        evaluator.load(directory, "float32", None, CONTEXT)
        result[name] = {
            "scores": [scores.logprobs.tolist() for scores in evaluator.score(PROMPTS)],
            "answers": evaluator.answer([prompt(*question) for question in QUESTIONS], MAX_NEW_TOKENS),
        }
    return result


@pytest.fixture(scope="module")
def found(models: dict[str, Path], expected: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("run")
    source, destination = directory / "input.json", directory / "output.json"
    given = {
        "loads": [[name, str(path), expected[name]["scores"]] for name, path in models.items()],
        "prompts": PROMPTS,
        "questions": QUESTIONS,
        "context": CONTEXT,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    source.write_text(json.dumps(given))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(RUN), str(source), str(destination)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(destination.read_text())


def test_text_and_answers_are_those_of_transformers(found: Any, expected: dict[str, Any]) -> None:
    for name, result in expected.items():
        np.testing.assert_allclose(found[name]["scores"], result["scores"], atol=5e-5, err_msg=name)
        assert found[name]["answers"] == result["answers"], name
        assert len(set(result["answers"])) > 1, "pictures make no difference"


def test_weights_of_the_same_model_are_swapped_in_place(found: Any) -> None:
    assert [found[name]["swap"] for name in sorted(found)] == ["fresh", "reloaded", "rebuilt", "reloaded"]
