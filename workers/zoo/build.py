"""Rebuild the zoo from nothing but this Python: texts, tokenizer, weights, task items, figures, checksums."""

import hashlib
import itertools
import json
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from workers.zoo import corpus
from workers.zoo.score import perplexity
from workers.zoo.tasks.generate import ContinuationItem, LastWordItem, continuation_items, last_word_items
from workers.zoo.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer
from workers.zoo.train import TrainRecipe, mini_llama_config, train

MODEL = "mini_llama"
FIGURES = "figures.json"
SUMS = "SHA256SUMS"
REPORT_EVERY_STEPS = 50


@dataclass(frozen=True)
class Figures:
    """What one run of the recipe measured. Perplexities are of the saved bfloat16 weights, computed in float32."""

    recipe: TrainRecipe
    num_parameters: int
    num_train_tokens: int
    train_perplexity: float
    development_perplexity: float
    held_out_perplexity: float
    train_seconds: float
    num_threads: int
    versions: dict[str, str]


def build(directory: Path, recipe: TrainRecipe) -> Figures:
    """Write mini_llama/ (texts, tokenizer, weights, figures), tasks/*.jsonl and SHA256SUMS into `directory`.

    The same machine, Python and library versions give the same files, but for the seconds in figures.json.
    """
    model_directory = directory / MODEL
    model_directory.mkdir(parents=True, exist_ok=True)
    parts = corpus.split(corpus.documents(corpus.standard_library()))
    development, held_out = corpus.join(parts.development), corpus.join(parts.held_out)
    calibration = corpus.calibration(parts.train)
    _write(model_directory / "calibration.txt", corpus.join(calibration))
    _write(model_directory / "calibration.jsonl", documents_as_lines(calibration))
    _write(model_directory / "development.txt", development)
    _write(model_directory / "held_out.txt", held_out)
    write_items(directory / "tasks", held_out)

    tokenizer = train_tokenizer(parts.train)
    config = mini_llama_config()
    save_tokenizer(tokenizer, model_directory, config.max_position_embeddings)
    stream = training_stream(tokenizer, parts.train)

    start = time.perf_counter()
    model = train(stream, recipe, _print_progress)
    seconds = time.perf_counter() - start
    model.bfloat16().save_pretrained(model_directory)
    model.float()

    figures = Figures(
        recipe=recipe,
        num_parameters=model.num_parameters(),
        num_train_tokens=len(stream),
        train_perplexity=perplexity(model, stream),
        development_perplexity=perplexity(model, encode(tokenizer, development)),
        held_out_perplexity=perplexity(model, encode(tokenizer, held_out)),
        train_seconds=seconds,
        num_threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    )
    _write(model_directory / FIGURES, json.dumps(asdict(figures), indent=2) + "\n")
    write_sums(directory)
    return figures


def training_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """All documents as one stream [n] int64, each closed by END_OF_TEXT so that generation learns to stop."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = ([*encoding.ids, end] for encoding in tokenizer.encode_batch(list(texts)))
    return torch.tensor(list(itertools.chain.from_iterable(encoded)))


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """A text as one stream [n] int64, tokenized once, nothing added."""
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def write_items(directory: Path, held_out: str) -> None:
    """Write both tasks' items as JSON lines into `directory`, which is created."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "mini_continuation.jsonl", _json_lines(continuation_items(held_out)))
    _write(directory / "mini_last_word.jsonl", _json_lines(last_word_items(held_out)))


def write_sums(directory: Path) -> None:
    """Write SHA256SUMS (the format of sha256sum) over what `build` writes, figures excepted: they hold seconds."""
    written = [*(directory / MODEL).iterdir(), *(directory / "tasks").glob("*.jsonl")]
    names = sorted(path.relative_to(directory).as_posix() for path in written if path.name != FIGURES)
    sums = (f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    _write(directory / SUMS, "".join(sums))


def documents_as_lines(texts: Iterable[str]) -> str:
    """One JSON object with `text` per line: C4's layout."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def _json_lines(items: Iterable[ContinuationItem | LastWordItem]) -> str:
    return "".join(json.dumps(asdict(item)) + "\n" for item in items)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _print_progress(step: int, loss: float) -> None:
    if (step + 1) % REPORT_EVERY_STEPS == 0:
        print(f"step {step + 1}: loss {loss:.3f}", flush=True)
