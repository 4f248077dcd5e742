"""Perplexity against hand computation, and the stage over a storage directory."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.schema import SuiteConf, TaskFileConf, TextConf
from tests.workers.test_canary import ShiftedEvaluator
from tests.workers.tiny_models import VOCAB_SIZE, canary_of, random_prompts, write_llama
from workers import evaluate as stage
from workers.api import Canary, EvaluateRequest, Manifest, ModelRef, TextRef, to_json
from workers.datasets import content_hash
from workers.errors import BadInputError, NumericalError, ParityError
from workers.evaluate import evaluate, open_evaluator, score_perplexity
from workers.evaluator import TokenScores
from workers.transformers_evaluator import TransformersEvaluator


class WindowEvaluator(ShiftedEvaluator):
    """Every token of window i has the log-probability -nll[i]."""

    def __init__(self, *nll: float) -> None:
        super().__init__(0.0)
        self.nll = nll

    def score(self, prompts: Any) -> list[TokenScores]:
        return [
            TokenScores(np.full(len(p) - 1, -nll), np.zeros(len(p) - 1, dtype=bool))
            for p, nll in zip(prompts, self.nll, strict=True)
        ]


def test_perplexity_is_the_exponential_of_the_mean_of_window_means() -> None:
    perplexity, mean_nll = score_perplexity(WindowEvaluator(1.0, 2.0, 6.0), "text", np.zeros((3, 8), np.int64))
    assert (perplexity.name, mean_nll.name) == ("text.perplexity", "text.mean_nll")
    assert mean_nll.value == pytest.approx(3.0)
    assert mean_nll.stderr == pytest.approx(math.sqrt(7.0 / 3))  # sample variance 7 over 3 windows
    assert perplexity.value == pytest.approx(math.e**3)
    assert perplexity.stderr == pytest.approx(math.e**3 * math.sqrt(7.0 / 3))
    assert perplexity.num_examples == mean_nll.num_examples == 3


def test_one_window_has_no_standard_error() -> None:
    assert [m.stderr for m in score_perplexity(WindowEvaluator(1.0), "t", np.zeros((1, 8), np.int64))] == [None, None]


def test_a_loss_beyond_floating_point_is_an_infinite_perplexity() -> None:
    perplexity, mean_nll = score_perplexity(WindowEvaluator(800.0), "t", np.zeros((1, 8), np.int64))
    assert perplexity.value == math.inf and mean_nll.value == 800.0


def test_a_nan_names_its_window() -> None:
    with pytest.raises(NumericalError, match="text: window 1 "):
        score_perplexity(WindowEvaluator(1.0, math.nan), "text", np.zeros((2, 8), np.int64))


def test_21_uniform_logits_have_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(write_llama(tmp_path, zero_head=True), "float32", None, 32)
    perplexity, mean_nll = score_perplexity(evaluator, "text", np.array(random_prompts(5, 32)))
    assert perplexity.value == pytest.approx(VOCAB_SIZE, rel=1e-5)
    assert mean_nll.stderr == pytest.approx(0.0, abs=1e-6)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model whose checkpoint is a baseline; its tokenizer is not needed, because the text is tokens."""
    monkeypatch.setattr(stage, "load_tokenizer", lambda model, directory: None)
    return write_llama(tmp_path / "model")


def request(model: Path, tmp_path: Path, canary: Canary) -> EvaluateRequest:
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.array(random_prompts(1, 100)[0], dtype=np.uint16))
    checkpoint = tmp_path / "checkpoints" / "key"
    checkpoint.mkdir(parents=True)
    manifest = Manifest(
        quantize_key="key",
        source="",
        weight_format="source",
        calibration_hash="",
        calibration_num_tokens=0,
        bits_per_weight=16.0,
        checkpoint_bytes=0,
        canary=canary,
        layer_reports=[],
        files={},
        seconds=0.0,
        peak_memory_gib=0.0,
        versions={},
    )
    (checkpoint / "manifest.json").write_text(to_json(manifest))
    text = TextConf(source="tokens", path=str(tokens))
    return EvaluateRequest(
        evaluate_key="evaluation",
        quantize_key="key",
        model=ModelRef("tiny", str(model), "llama", "", directory=str(model)),
        suite=SuiteConf(name="s", sequence_length=32, perplexity={"text": text}),
        texts={"text": TextRef("tokens", str(tokens), content_hash(tokens))},
        engine="transformers",
        dtype="auto",
        storage=str(tmp_path),
        attempt_directory=str(tmp_path),
    )


def test_a_baseline_is_scored_on_every_text_of_its_suite(model: Path, tmp_path: Path) -> None:
    asked = request(model, tmp_path, canary_of(model, random_prompts(8, 40)))  # longer than a window
    result = evaluate(open_evaluator("transformers", 1), asked)
    assert [m.name for m in result.metrics] == ["text.perplexity", "text.mean_nll"]
    assert result.metrics[0].num_examples == 3
    assert result.swap == "fresh" and result.canary_difference < 1e-5
    assert {"text", "hash", "load", "load.model", "load.canary", "perplexity"} == set(result.seconds)


def test_items_that_changed_since_the_sweep_began_are_not_scored(model: Path, tmp_path: Path) -> None:
    """Or their result would stand under the key of the old ones."""
    asked = request(model, tmp_path, canary_of(model, random_prompts(8, 40)))
    items = tmp_path / "items.jsonl"
    items.write_text('{"query": "t1", "choices": ["t2", "t3"], "gold": 1}\n')
    suite = dataclasses.replace(asked.suite, tasks=["items"], task_files={"items": TaskFileConf(path=str(items))})
    texts = asked.texts | {"task_files.items": TextRef("task_file", str(items), content_hash(items))}
    items.write_text('{"query": "t1", "choices": ["t2", "t3"], "gold": 0}\n')
    with pytest.raises(BadInputError, match=r"items.jsonl is not what the sweep resolved: .* start the sweep again"):
        evaluate(open_evaluator("transformers", 1), dataclasses.replace(asked, suite=suite, texts=texts))


def test_a_checkpoint_that_is_not_its_manifest_s_is_not_scored(model: Path, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", seed=1)
    asked = request(model, tmp_path, canary_of(other, random_prompts(8, 40)))
    with pytest.raises(ParityError, match="differs from the manifest"):
        evaluate(open_evaluator("transformers", 1), asked)


def test_a_checkpoint_that_is_missing_or_damaged_is_named(model: Path, tmp_path: Path) -> None:
    asked = request(model, tmp_path, canary_of(model, random_prompts(8, 16)))
    evaluator = open_evaluator("transformers", 1)
    with pytest.raises(BadInputError, match="no finished checkpoint"):
        evaluate(evaluator, dataclasses.replace(asked, quantize_key="nothing"))
    manifest = tmp_path / "checkpoints" / "key" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"files": {}', '"files": {"model.safetensors": "0"}'))
    with pytest.raises(BadInputError, match=r"/key/model.safetensors is missing; resubmit makes the checkpoint anew"):
        evaluate(evaluator, asked)
