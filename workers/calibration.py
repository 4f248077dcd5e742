"""Token windows: what methods calibrate on and what perplexity is computed over. Pure, given content and tokenizer.

The draws of C4 and WikiText-2 are those of GPTQ's data loader (Frantar et al. 2023), which the papers after it share:
Python's Mersenne Twister, one draw for the document and one for the start, both ends inclusive.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from conf.schema import CalibrationConf
from workers.datasets import Content
from workers.errors import BadInputError

C4_NUM_WINDOWS = 256
C4_NEW_NUM_DOCUMENTS = 1100
CANARY_NUM_PROMPTS = 8
CANARY_NUM_TOKENS = 64

Windows = npt.NDArray[np.int64]  # [n, sequence_length]


class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer; verbose=False: no warning when a text exceeds the model's context."""

    def __call__(self, text: str, *, verbose: bool) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Shown:
    """The images of calibration windows.

    pixel_values: [images, channels, height, width] float32, as the model wants them. rows: [n, length] int64, which of
    the tokens that the images become stands there, image after image, per_image tokens each; -1 where text stands.
    """

    pixel_values: npt.NDArray[np.float32]
    rows: Windows
    per_image: int


@dataclass(frozen=True)
class Calibration:
    """What a cell is calibrated on. windows: [n, length]; shown: null for text alone."""

    windows: Windows
    shown: Shown | None = None

    def first(self, count: int) -> "Calibration":
        """The first windows, with all images."""
        shown = None if self.shown is None else replace(self.shown, rows=self.shown.rows[:count])
        return Calibration(self.windows[:count], shown)

    @property
    def hash(self) -> str:
        """The windows' hash; with images, the sha256 over that, over where they stand and over their pixels."""
        text = token_hash(self.windows)
        if self.shown is None:
            return text
        pixels = self.shown.pixel_values
        digest = hashlib.sha256(f"{text} {token_hash(self.shown.rows)} {pixels.shape}".encode())
        digest.update(pixels.astype("<f4").tobytes())
        return digest.hexdigest()


def calibration_windows(
    conf: CalibrationConf, content: Content, tokenizer: Tokenizer, seed: int, vocab_size: int
) -> Windows:
    """Calibration tokens, int64 [conf.num_sequences, conf.sequence_length].

    Documents: a random crop of a random document longer than the window, for each window; as c4_short, up to
    num_sequences documents no longer than the window, joined and cut, which gives fewer windows. A string: random
    crops of one token stream. An array: its first rows as they are. Raises BadInputError when the content cannot fill
    the windows or an id lies outside [0, vocab_size).
    """
    count, length = conf.num_sequences, conf.sequence_length
    if isinstance(content, np.ndarray):
        windows = given_windows(content, count, length)
    elif isinstance(content, str):
        windows = _stream_crops(encode(content, tokenizer), count, length, seed)
    elif conf.source == "c4_short":
        windows = short_documents(content, tokenizer, count, length, seed)
    else:
        windows = _stack(islice(document_crops(content, tokenizer, length, seed), count))
    check_token_ids(windows, vocab_size)
    return windows


def evaluation_windows(
    source: str, content: Content, tokenizer: Tokenizer, sequence_length: int, seed: int = 0
) -> Windows:
    """Tokens to score, int64 [n, sequence_length]; a remainder shorter than a window is dropped.

    wikitext2, text: one tokenization, so that a BOS stands at the very beginning only. tokens: the stream as it is.
    c4: 256 random crops, the variant of GPTQ's first release and of the paper. c4_new: the first 1100 documents joined
    with a space, their first 256 windows. The two C4 variants differ by several percent and are never comparable.
    Raises BadInputError when there is not one window.
    """
    if isinstance(content, np.ndarray):
        return _cut(content, sequence_length)
    if isinstance(content, str):
        return _cut(encode(content, tokenizer), sequence_length)
    if source == "c4_new":
        tokens = encode(" ".join(content[:C4_NEW_NUM_DOCUMENTS]), tokenizer)
        return _cut(tokens[: C4_NUM_WINDOWS * sequence_length], sequence_length)
    return _stack(islice(document_crops(content, tokenizer, sequence_length, seed), C4_NUM_WINDOWS))


def encode(text: str, tokenizer: Tokenizer) -> Windows:
    """Token ids of a text with the tokenizer's default special tokens, int64 [num_tokens]."""
    return np.asarray(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)


def document_crops(
    documents: Sequence[str], tokenizer: Tokenizer, length: int, seed: int
) -> Iterator[tuple[int, int, Windows]]:
    """Endless (document, start, tokens [length]) draws.

    A document qualifies when it is longer than the window. Copies of the original differ for a document of exactly
    `length` tokens: some refuse it, the others accept it and then fail on an empty range. Refusing gives the same draws
    wherever the others finish. Raises BadInputError once every document has been drawn and none qualifies.
    """
    rng = random.Random(seed)
    too_short: set[int] = set()
    longest = 0
    while True:
        index = rng.randint(0, len(documents) - 1)
        if index in too_short:
            continue
        tokens = encode(documents[index], tokenizer)
        if len(tokens) > length:
            start = rng.randint(0, len(tokens) - length - 1)
            yield index, start, tokens[start : start + length]
            continue
        too_short.add(index)
        longest = max(longest, len(tokens))
        if len(too_short) == len(documents):
            raise BadInputError(
                f"none of {len(documents)} documents is longer than a window of {length} tokens "
                f"(the longest has {longest}); lower sequence_length or give longer documents"
            )


def short_documents(documents: Sequence[str], tokenizer: Tokenizer, count: int, length: int, seed: int) -> Windows:
    """AWQ's draw (Lin et al. 2023): up to `count` short documents of a shuffled set, joined, int64 [n, length].

    Short: 1 to `length` tokens once stripped. The shuffle is the `datasets` library's, numpy's permutation of a seed.
    Raises BadInputError when together they do not fill a window.
    """
    chosen: list[Windows] = []
    for index in np.random.default_rng(seed).permutation(len(documents)):
        tokens = encode(documents[index].strip(), tokenizer)
        if 0 < len(tokens) <= length:
            chosen.append(tokens)
        if len(chosen) == count:
            break
    total = sum(map(len, chosen))
    if total < length:
        raise BadInputError(
            f"{len(chosen)} of {len(documents)} documents have 1 to {length} tokens, {total} together: less than one "
            "window; give more documents"
        )
    return np.concatenate(chosen)[: total // length * length].reshape(-1, length)


def given_windows(array: npt.NDArray[np.integer[Any]], count: int, length: int) -> Windows:
    """The first `count` rows of token ids [rows, length]. Raises BadInputError, with the shape, when it cannot."""
    if array.ndim != 2 or array.shape[1] != length or array.shape[0] < count:
        raise BadInputError(
            f"calibration tokens have shape {list(array.shape)}; needed are [{count} or more, {length}]: set "
            "calibration.num_sequences and calibration.sequence_length to what the file holds"
        )
    return np.asarray(array[:count], dtype=np.int64)


def check_token_ids(windows: npt.NDArray[np.integer[Any]], vocab_size: int) -> None:
    """Raise BadInputError when an id lies outside [0, vocab_size)."""
    wrong = (windows < 0) | (windows >= vocab_size)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise BadInputError(
            f"token id {int(windows[row, column])} in window {row}, position {column}, but the model's vocabulary has "
            f"{vocab_size} entries: these tokens belong to another tokenizer; give the model's own "
            "(model.tokenizer=<hub id or directory>), or tokens made with it"
        )


def token_hash(windows: Windows) -> str:
    """sha256, hexadecimal, over the shape and the ids, both as int64 little-endian: one hash for one set of tokens."""
    digest = hashlib.sha256(np.asarray(windows.shape, dtype="<i8").tobytes())
    digest.update(windows.astype("<i8").tobytes())
    return digest.hexdigest()


def canary_tokens(calibration: Calibration) -> list[list[int]]:
    """Up to eight prompts of up to 64 tokens: the beginnings of windows spread evenly over the calibration set.

    Engines are asked for them without images, so the tokens of images are left out. Raises BadInputError when windows
    are nothing but images.
    """
    windows, shown = calibration.windows, calibration.shown
    count = min(CANARY_NUM_PROMPTS, len(windows))
    chosen = [i * len(windows) // count for i in range(count)]
    texts = [windows[i] if shown is None else windows[i][shown.rows[i] < 0] for i in chosen]
    length = min(CANARY_NUM_TOKENS, *map(len, texts))
    if length < 2:
        raise BadInputError(
            f"calibration windows of {windows.shape[1]} tokens hold no text beside images; raise "
            "calibration.sequence_length"
        )
    return [text[:length].tolist() for text in texts]


def _stream_crops(tokens: Windows, count: int, length: int, seed: int) -> Windows:
    if len(tokens) <= length:
        raise BadInputError(
            f"the calibration text has {len(tokens)} tokens; random windows of {length} need at least {length + 1}: "
            "lower calibration.sequence_length or give a longer text"
        )
    rng = random.Random(seed)
    starts = [rng.randint(0, len(tokens) - length - 1) for _ in range(count)]
    return np.stack([tokens[start : start + length] for start in starts])


def _stack(crops: Iterator[tuple[int, int, Windows]]) -> Windows:
    return np.stack([tokens for _, _, tokens in crops])


def _cut(tokens: npt.NDArray[np.integer[Any]], length: int) -> Windows:
    """A stream [num_tokens] as windows [num_tokens // length, length]."""
    if tokens.ndim != 1:
        raise BadInputError(f"tokens to score have shape {list(tokens.shape)}; needed is one stream, [num_tokens]")
    count = len(tokens) // length
    if count == 0:
        raise BadInputError(
            f"the text to score has {len(tokens)} tokens, less than one window of {length}: lower "
            "suite.sequence_length or give a longer text"
        )
    return np.asarray(tokens[: count * length], dtype=np.int64).reshape(count, length)
