"""Rebuild the zoo from nothing but this Python: texts, task items, tokenizer, weights, figures, checksums."""

import hashlib
import itertools
import json
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

from workers.zoo import corpus
from workers.zoo.images.folder import write_folders
from workers.zoo.images.scenes import SEEDS
from workers.zoo.images.sight import learn_to_see
from workers.zoo.images.windows import WindowMaker
from workers.zoo.recipes import Recipe
from workers.zoo.routing import tokens_per_expert
from workers.zoo.score import perplexity, rounded, share_answered, whole_windows
from workers.zoo.tasks.generate import ContinuationItem, LastWordItem, continuation_items, last_word_items
from workers.zoo.tokenizer import END_OF_TEXT, fast_tokenizer, train_tokenizer
from workers.zoo.train import SEQUENCE_LENGTH, TrainRecipe, steps, train

TEXTS = "mini_llama"  # the folder with the texts of all models
IMAGES = "mini_images"  # the one with those of questions about images
CONTEXT = 512
FIGURES = "figures.json"
SUMS = "SHA256SUMS"
REPORT_EVERY_STEPS = 50


@dataclass(frozen=True)
class Figures:
    """What one run of a recipe measured. Perplexities are of the saved bfloat16 weights, computed in float32.

    rounded: held-out perplexity by bits, linears and experts rounded to nearest, one group per row. tokens_per_expert:
    of the development text, by router. answered: by bits, 16 among them, the share of the held-out questions about
    images that were answered right; development_answered: of others, in 16 bits; for a model that sees.
    """

    recipe: TrainRecipe
    num_parameters: int
    num_train_tokens: int
    train_perplexity: float
    development_perplexity: float
    held_out_perplexity: float
    rounded: dict[int, float]
    tokens_per_expert: dict[str, list[int]]
    development_answered: float | None
    answered: dict[int, float]
    train_seconds: float
    num_threads: int
    versions: dict[str, str]


def build(directory: Path, name: str, recipe: Recipe) -> Figures:
    """Write the texts, tasks/*.jsonl, mini_images/, <name>/ (tokenizer, weights, figures) and SHA256SUMS.

    The same machine, Python and library versions give the same files, but for the seconds in figures.json. Raises
    FileExistsError when a text is there already and is another one.
    """
    parts = corpus.split(corpus.documents(corpus.standard_library()))
    write_texts(directory, parts)
    write_folders(directory / IMAGES)
    tokenizer = train_tokenizer(parts.train)
    (directory / name).mkdir(parents=True, exist_ok=True)
    stream = training_stream(tokenizer, parts.train)
    processor = None if recipe.processor is None else recipe.processor(tokenizer, CONTEXT)
    windows = None if processor is None else WindowMaker(processor, SEEDS["train"], SEQUENCE_LENGTH)
    (processor or fast_tokenizer(tokenizer, CONTEXT)).save_pretrained(directory / name)

    def make() -> Any:
        model = recipe.make()
        if windows is not None:
            learn_to_see(model, windows, SEEDS["sight"], recipe.train)
        return model

    start = time.perf_counter()
    model = train(make, steps(stream, recipe.train, windows), recipe.train, _print_progress)
    seconds = time.perf_counter() - start
    model.bfloat16().save_pretrained(directory / name)

    development, held_out = (encode(tokenizer, corpus.join(part)) for part in (parts.development, parts.held_out))
    figures = measure(model.float(), recipe.train, stream, development, held_out, seconds, processor)
    _write(directory / name / FIGURES, json.dumps(asdict(figures), indent=2) + "\n")
    write_sums(directory)
    return figures


def measure(
    model: Any,
    recipe: TrainRecipe,
    stream: Tensor,
    development: Tensor,
    held_out: Tensor,
    seconds: float,
    processor: Any = None,
) -> Figures:
    """Figures of a model in float32 that holds what is saved. Streams: [n] int64. processor: where it sees."""
    by_bits, answered = {}, {}
    if processor is not None:
        answered[16] = share_answered(model, processor, "held_out")
    for bits in (4, 3, 2):
        with rounded(model, bits):
            by_bits[bits] = perplexity(model, held_out)
            if processor is not None:
                answered[bits] = share_answered(model, processor, "held_out")
    return Figures(
        recipe=recipe,
        num_parameters=model.num_parameters(),
        num_train_tokens=len(stream),
        train_perplexity=perplexity(model, stream),
        development_perplexity=perplexity(model, development),
        held_out_perplexity=perplexity(model, held_out),
        rounded=by_bits,
        tokens_per_expert=tokens_per_expert(model, whole_windows(development)),
        development_answered=None if processor is None else share_answered(model, processor, "development"),
        answered=answered,
        train_seconds=seconds,
        num_threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    )


def write_texts(directory: Path, parts: corpus.Split) -> None:
    """Write the texts all models share, and the tasks' items.

    Raises FileExistsError when a text is there already and is another one: the models beside it belong to that.
    """
    calibration = corpus.calibration(parts.train)
    texts = {
        "calibration.txt": corpus.join(calibration),
        "calibration.jsonl": documents_as_lines(calibration),
        "development.txt": corpus.join(parts.development),
        "held_out.txt": corpus.join(parts.held_out),
    }
    folder = directory / TEXTS
    for name, text in texts.items():
        if (folder / name).exists() and (folder / name).read_text(encoding="utf-8") != text:
            raise FileExistsError(f"{folder / name} comes from another CPython than this one; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write(folder / name, text)
    write_items(directory / "tasks", texts["held_out.txt"])


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
    written = [*directory.glob("mini_*/**/*"), *(directory / "tasks").glob("*.jsonl")]
    files = (path for path in written if path.is_file() and path.name != FIGURES)
    names = sorted(path.relative_to(directory).as_posix() for path in files)
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
