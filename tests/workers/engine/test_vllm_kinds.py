"""vLLM against Transformers on a trained model of every kind that it scores, dense and quantized, in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine_choice import SEEING
from tests.bench.bench_engines import questions
from tests.workers.zoo.minis import mini_ref
from workers.arch import ARCHITECTURES
from workers.zoo import MINIS

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("vllm._version", reason="no vLLM in this environment")

ROOT = Path(__file__).parents[3]
KINDS = {mini_ref(name).architecture: name for name in reversed(MINIS)}  # the first mini of each
MODELS = list(KINDS.values())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    results = tmp_path_factory.mktemp("rows") / "rows.json"
    command = [sys.executable, "tests/bench/bench_engines.py", "--models", *MODELS, "--windows", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--results", str(results)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return list(json.loads(results.read_text()))


def test_perplexity_is_that_of_transformers_within_a_thousandth(rows: list[dict[str, Any]]) -> None:
    assert [(row["model"], row["bits"]) for row in rows] == [(name, bits) for name in MODELS for bits in (16, 3)]
    assert {(row["model"], row["bits"]): row["difference"] for row in rows if abs(row["difference"]) > 1e-3} == {}


def test_the_canary_s_log_probabilities_are_those_of_the_manifest_in_float32(rows: list[dict[str, Any]]) -> None:
    assert max(row["vllm"]["canary_difference"] for row in rows) < 1e-4


def test_greedy_continuations_are_those_of_transformers(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["vllm"]["continuations"] == row["transformers"]["continuations"], row["model"]


def test_weights_are_swapped_in_place_but_for_mixtures_of_experts(rows: list[dict[str, Any]]) -> None:
    swaps = {mini_ref(row["model"]).architecture: row["vllm"]["swap"] for row in rows if row["bits"] == 3}
    assert swaps == {kind: "rebuilt" if kind in ("mixtral", "deepseek_moe") else "reloaded" for kind in swaps}
    assert swaps.keys() <= ARCHITECTURES.keys()


def test_answers_about_pictures_are_those_of_transformers_and_mostly_right(rows: list[dict[str, Any]]) -> None:
    seen = [row for row in rows if mini_ref(row["model"]).architecture in SEEING]
    right = [answer for _, answer in questions()]
    assert len(seen) == 4
    for row in seen:
        assert row["vllm"]["answers"] == row["transformers"]["answers"], row["model"]
        assert sum(map(str.__eq__, row["vllm"]["answers"], right)) > 0.8 * len(right), row["model"]
