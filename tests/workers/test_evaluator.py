"""What config.json says to an engine."""

from pathlib import Path

import pytest

from conf.schema import SuiteConf, TextConf
from workers.errors import BadInputError
from workers.evaluator import chunk_tokens, context_length, engine_dtype, read_config, timed


def suite(sequence_length: int = 512, *, perplexity: bool = True, tasks: bool = False) -> SuiteConf:
    texts = {"text": TextConf(source="text")} if perplexity else {}
    return SuiteConf(name="s", sequence_length=sequence_length, perplexity=texts, tasks=["arc_easy"] if tasks else [])


def test_perplexity_needs_one_window() -> None:
    assert context_length(suite(512), {"max_position_embeddings": 2048}) == 512


def test_tasks_need_their_longest_request_or_the_whole_context() -> None:
    assert context_length(suite(512, tasks=True), {"max_position_embeddings": 131072}) == 2048
    assert context_length(suite(512, tasks=True), {"max_position_embeddings": 1024}) == 1024
    assert context_length(suite(512, tasks=True), {}) == 2048  # a state-space model has no positions


def test_a_window_may_be_as_long_as_the_context_but_not_longer() -> None:
    assert context_length(suite(2048), {"max_position_embeddings": 2048}) == 2048
    with pytest.raises(BadInputError, match=r"sequence_length=2049.*2048 positions"):
        context_length(suite(2049), {"max_position_embeddings": 2048})


def test_the_window_does_not_matter_when_there_is_no_text() -> None:
    assert context_length(suite(99999, perplexity=False, tasks=True), {"max_position_embeddings": 512}) == 512


def test_auto_is_the_dtype_of_the_checkpoint() -> None:
    assert engine_dtype("auto", {"dtype": "float32"}) == "float32"
    assert engine_dtype("auto", {"torch_dtype": "bfloat16"}) == "bfloat16"
    assert engine_dtype("float16", {"dtype": "float32"}) == "float16"
    with pytest.raises(BadInputError, match="dtype float64"):
        engine_dtype("auto", {"dtype": "float64"})


def test_a_chunk_s_logits_stay_small_for_every_vocabulary() -> None:
    assert chunk_tokens({"vocab_size": 1024}) == 2048
    assert chunk_tokens({"text_config": {"vocab_size": 128256}}) * 128256 <= 2**27
    assert chunk_tokens({"vocab_size": 10**9}) == 256


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInputError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_step_that_runs_twice_adds_up() -> None:
    seconds = {"step": 10.0}
    with timed(seconds, "step"):
        pass
    assert 10.0 < seconds["step"] < 11.0
