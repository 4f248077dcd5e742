"""Token windows against hand computation, the pinned draws, and a stream cut by another tool."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from conf.schema import CalibrationConf
from workers.calibration import (
    Calibration,
    calibration_windows,
    canary_tokens,
    check_token_ids,
    document_crops,
    encode,
    evaluation_windows,
    token_hash,
)
from workers.datasets import read_content, read_text
from workers.errors import BadInputError

VOCAB_SIZE = 100_000
BOS = 99_999


class NumberTokenizer:
    """Words are numbers and are their own ids."""

    def __init__(self, *, bos: bool = False) -> None:
        self.prefix = [BOS] if bos else []
        self.num_calls = 0

    def __call__(self, text: str, *, verbose: bool) -> dict[str, Any]:
        self.num_calls += 1
        return {"input_ids": self.prefix + [int(word) for word in text.split()]}


def numbers(count: int, first: int = 0) -> str:
    return " ".join(str(first + i) for i in range(count))


def conf(source: str, num_sequences: int, sequence_length: int) -> CalibrationConf:
    return CalibrationConf(name="test", source=source, num_sequences=num_sequences, sequence_length=sequence_length)


# 40 documents of 5 to 212 tokens; document i holds 1000 i, 1000 i + 1, ... so that a token tells where it is from.
DOCUMENTS = [numbers(5 + (i * 37) % 211, first=1000 * i) for i in range(40)]


@pytest.mark.parametrize(("seed", "draws"), [(0, [(26, 1), (16, 65), (22, 74)]), (2, [(3, 2), (5, 46), (10, 39)])])
def test_20_the_first_three_draws_of_documents_are_pinned(seed: int, draws: list[tuple[int, int]]) -> None:
    crops = islice(document_crops(DOCUMENTS, NumberTokenizer(), 100, seed), 3)
    assert [(document, start) for document, start, _ in crops] == draws


@pytest.mark.parametrize(("seed", "starts"), [(0, [864, 394, 776]), (2, [978, 883, 970])])
def test_20_the_first_three_starts_in_a_stream_are_pinned(seed: int, starts: list[int]) -> None:
    windows = calibration_windows(conf("text", 3, 20), numbers(1000), NumberTokenizer(), seed, VOCAB_SIZE)
    assert windows[:, 0].tolist() == starts


def test_document_windows_are_what_the_original_procedure_draws() -> None:
    random.seed(7)
    expected = []
    for _ in range(50):
        while True:
            tokens = [int(word) for word in DOCUMENTS[random.randint(0, len(DOCUMENTS) - 1)].split()]
            if len(tokens) > 64:
                break
        start = random.randint(0, len(tokens) - 64 - 1)
        expected.append(tokens[start : start + 64])
    windows = calibration_windows(conf("c4", 50, 64), DOCUMENTS, NumberTokenizer(), 7, VOCAB_SIZE)
    assert windows.tolist() == expected
    assert windows.dtype == np.int64


def test_a_stream_is_tokenized_once_with_its_bos_in_front() -> None:
    tokenizer = NumberTokenizer(bos=True)
    windows = evaluation_windows("text", numbers(11), tokenizer, 4)
    assert windows.tolist() == [[BOS, 0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert tokenizer.num_calls == 1


def test_the_remainder_of_a_stream_is_dropped() -> None:
    assert evaluation_windows("wikitext2", numbers(11), NumberTokenizer(), 4).shape == (2, 4)


def test_c4_is_scored_on_256_crops_drawn_with_seed_zero() -> None:
    windows = evaluation_windows("c4", DOCUMENTS, NumberTokenizer(), 100)
    calibration = calibration_windows(conf("c4", 256, 100), DOCUMENTS, NumberTokenizer(), 0, VOCAB_SIZE)
    assert windows.shape == (256, 100)
    assert np.array_equal(windows, calibration)


def test_c4_new_is_the_first_1100_documents_as_one_stream() -> None:
    documents = [numbers(3, first=3 * i) for i in range(2000)]
    windows = evaluation_windows("c4_new", documents, NumberTokenizer(bos=True), 10)
    assert windows.shape == (256, 10)
    assert windows.ravel().tolist() == [BOS, *range(2559)]
    assert evaluation_windows("c4_new", documents, NumberTokenizer(), 3300).tolist() == [list(range(3300))]
    with pytest.raises(BadInputError, match="has 3300 tokens"):
        evaluation_windows("c4_new", documents, NumberTokenizer(), 3301)


def test_a_document_of_exactly_one_window_is_passed_over() -> None:
    crops = document_crops([numbers(8), numbers(9, first=100)], NumberTokenizer(), 8, seed=0)
    assert [tokens.tolist() for _, _, tokens in islice(crops, 5)] == [list(range(100, 108))] * 5


def test_documents_that_are_all_too_short_are_refused_instead_of_drawn_for_ever() -> None:
    with pytest.raises(BadInputError, match=r"none of 40 documents.* 300 tokens \(the longest has 212\)"):
        calibration_windows(conf("c4", 1, 300), DOCUMENTS, NumberTokenizer(), 0, VOCAB_SIZE)


def test_a_text_shorter_than_a_window_is_refused_with_the_numbers() -> None:
    with pytest.raises(BadInputError, match="has 20 tokens; random windows of 20 need at least 21"):
        calibration_windows(conf("text", 1, 20), numbers(20), NumberTokenizer(), 0, VOCAB_SIZE)
    with pytest.raises(BadInputError, match="has 19 tokens, less than one window of 20"):
        evaluation_windows("text", numbers(19), NumberTokenizer(), 20)


def test_given_tokens_are_taken_as_they_are() -> None:
    rows = np.arange(30, dtype=np.uint16).reshape(5, 6)
    windows = calibration_windows(conf("tokens", 3, 6), rows, NumberTokenizer(), 0, VOCAB_SIZE)
    assert np.array_equal(windows, rows[:3])
    assert windows.dtype == np.int64


@pytest.mark.parametrize("shape", [(2, 6), (3, 7), (18,), (3, 6, 1)])
def test_given_tokens_of_another_shape_are_refused_with_it(shape: tuple[int, ...]) -> None:
    rows = np.zeros(shape, dtype=np.int32)
    with pytest.raises(BadInputError, match=str(list(shape)).replace("[", r"\[")):
        calibration_windows(conf("tokens", 3, 6), rows, NumberTokenizer(), 0, VOCAB_SIZE)


def test_a_stream_to_score_must_be_one_dimensional() -> None:
    with pytest.raises(BadInputError, match=r"shape \[4, 6\]"):
        evaluation_windows("tokens", np.zeros((4, 6), dtype=np.int32), NumberTokenizer(), 2)


@pytest.mark.parametrize("wrong", [-1, 50, 2**40])
def test_ids_outside_the_vocabulary_are_refused_with_their_place(wrong: int) -> None:
    windows = np.full((4, 8), 49)
    check_token_ids(windows, 50)
    windows[2, 5] = wrong
    with pytest.raises(BadInputError, match=f"token id {wrong} in window 2, position 5, .* 50 entries"):
        check_token_ids(windows, 50)


def test_calibration_checks_the_vocabulary_of_every_source() -> None:
    with pytest.raises(BadInputError, match="vocabulary has 500 entries"):
        calibration_windows(conf("text", 8, 20), numbers(1000), NumberTokenizer(), 0, 500)


def test_the_token_hash_is_pinned_and_ignores_the_storage_type() -> None:
    windows = np.arange(6).reshape(2, 3)
    pinned = "f37c80c6d35cd489daf64e10b531b2475d5a506c08a2dd14194a4854ecd58cdc"
    assert token_hash(windows) == pinned
    assert token_hash(windows.astype(">i4").astype(np.int64)) == pinned
    assert token_hash(np.asfortranarray(windows)) == pinned


def test_20_the_token_hash_changes_with_shape_and_tokenizer() -> None:
    windows = np.arange(6).reshape(2, 3)
    assert token_hash(windows) != token_hash(windows.reshape(3, 2))
    setting = conf("text", 4, 20)
    plain = calibration_windows(setting, numbers(1000), NumberTokenizer(), 0, VOCAB_SIZE)
    with_bos = calibration_windows(setting, numbers(1000), NumberTokenizer(bos=True), 0, VOCAB_SIZE)
    assert token_hash(plain) != token_hash(with_bos)


def test_canary_prompts_are_spread_over_the_windows() -> None:
    windows = np.arange(128 * 256).reshape(128, 256)
    prompts = canary_tokens(Calibration(windows))
    assert [prompt[0] // 256 for prompt in prompts] == [0, 16, 32, 48, 64, 80, 96, 112]
    assert all(prompt == list(range(prompt[0], prompt[0] + 64)) for prompt in prompts)


def test_few_short_windows_give_few_short_canary_prompts() -> None:
    assert canary_tokens(Calibration(np.arange(6).reshape(2, 3))) == [[0, 1, 2], [3, 4, 5]]


@given(
    num_tokens=st.integers(2, 300),
    data=st.data(),
    count=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    bos=st.booleans(),
)
def test_every_stream_window_lies_inside_the_stream(
    num_tokens: int, data: st.DataObject, count: int, seed: int, bos: bool
) -> None:
    length = data.draw(st.integers(1, num_tokens - 1))
    tokenizer = NumberTokenizer(bos=bos)
    stream = encode(numbers(num_tokens), tokenizer)
    windows = calibration_windows(conf("text", count, length), numbers(num_tokens), tokenizer, seed, VOCAB_SIZE)
    assert windows.shape == (count, length)
    places = np.lib.stride_tricks.sliding_window_view(stream, length)
    assert all((places == window).all(axis=1).any() for window in windows)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_every_document_window_lies_inside_one_document(lengths: list[int], length: int, seed: int) -> None:
    documents = [numbers(n, first=1000 * i) for i, n in enumerate(lengths)]
    setting = conf("c4", 5, length)
    if max(lengths) <= length:
        with pytest.raises(BadInputError, match=f"the longest has {max(lengths)}"):
            calibration_windows(setting, documents, NumberTokenizer(), seed, VOCAB_SIZE)
        return
    windows = calibration_windows(setting, documents, NumberTokenizer(), seed, VOCAB_SIZE)
    assert (np.diff(windows, axis=1) == 1).all()
    assert all(window[-1] % 1000 < lengths[window[0] // 1000] for window in windows)
    assert token_hash(windows) == token_hash(
        calibration_windows(setting, documents, NumberTokenizer(), seed, VOCAB_SIZE)
    )


@given(num_tokens=st.integers(1, 200), length=st.integers(1, 50))
def test_evaluation_windows_are_the_stream_from_its_beginning(num_tokens: int, length: int) -> None:
    stream = np.arange(num_tokens)
    if num_tokens < length:
        with pytest.raises(BadInputError, match=f"{num_tokens} tokens"):
            evaluation_windows("tokens", stream, NumberTokenizer(), length)
        return
    windows = evaluation_windows("tokens", stream, NumberTokenizer(), length)
    assert windows.shape[0] == num_tokens // length
    assert np.array_equal(windows.ravel(), stream[: windows.size])


# --- real texts and tokenizers ---------------------------------------------------------------------------------------


def test_text_and_tokens_of_the_reference_model_are_the_same_windows(shared: Path) -> None:
    directory = shared / "models" / "mini_reference"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    stream = np.load(directory / "tokens_held.npy")
    from_text = evaluation_windows("text", read_text(directory / "held.txt"), tokenizer, 256)
    from_tokens = evaluation_windows("tokens", read_content("tokens", directory / "tokens_held.npy"), tokenizer, 256)
    assert from_text.shape == (334, 256)
    assert np.array_equal(from_text, from_tokens)
    assert np.array_equal(from_tokens.ravel(), stream[: 334 * 256])


def test_shipped_calibration_windows_are_taken_as_they_are(shared: Path) -> None:
    file = shared / "models" / "mini_reference" / "calibration_windows.npy"
    windows = calibration_windows(
        conf("tokens", 128, 256), read_content("tokens", file), NumberTokenizer(), seed=0, vocab_size=1024
    )
    assert np.array_equal(windows, np.load(file))


def test_c4_documents_are_cropped_with_a_real_tokenizer(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "mini_reference")
    documents = read_content("c4", shared / "data" / "c4" / "c4-sample.02.json.gz")
    assert isinstance(documents, list)
    windows = calibration_windows(conf("c4", 16, 256), documents, tokenizer, seed=0, vocab_size=1024)
    assert windows.shape == (16, 256)
    streams = [encode(document, tokenizer).tobytes() for document in documents]
    assert all(any(window.tobytes() in stream for stream in streams) for window in windows)


def test_a_long_text_is_tokenized_without_a_warning(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "mini_reference", model_max_length=16)
    text = numbers(100)
    tokenizer(text)
    assert "longer than the specified maximum" in caplog.text  # so the warning would be seen here
    caplog.clear()
    tokenizer.deprecation_warnings.clear()
    encode(text, tokenizer)
    assert caplog.text == ""


def test_short_documents_are_shuffled_as_the_datasets_library_does_joined_and_cut() -> None:
    order = np.random.default_rng(42).permutation(40).tolist()
    short = [i for i in order if 5 + (i * 37) % 211 <= 60][:5]
    stream = np.concatenate([encode(DOCUMENTS[i], NumberTokenizer()) for i in short])
    windows = calibration_windows(conf("c4_short", 5, 60), DOCUMENTS, NumberTokenizer(), 42, VOCAB_SIZE)
    assert len(stream) >= 120 and np.array_equal(windows.ravel(), stream[: len(windows) * 60])
    assert len(windows) == len(stream) // 60


def test_short_documents_that_do_not_fill_a_window_are_refused() -> None:
    texts = [numbers(3), numbers(2), numbers(10)]
    with pytest.raises(BadInputError, match="2 of 3 documents have 1 to 9 tokens, 5 together: less than one window"):
        calibration_windows(conf("c4_short", 3, 9), texts, NumberTokenizer(), 0, VOCAB_SIZE)
