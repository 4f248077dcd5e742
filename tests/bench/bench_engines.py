"""Do the engines agree? Every shipped mini in 16 bits and quantized, scored by Transformers and by vLLM: one table.

Run as a script from the repository's root: prints, asserts nothing. On a GPU where there is one. Checkpoints are GPTQ's
of 8 windows, packed and multiplied out as in a cell; both engines load the same directory, the second one in the engine
that scored the first where vLLM can swap weights. `--results` keeps the rows as JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from conf.schema import UniformScheme
from orchestrator.engine_choice import SEEING
from tests.workers.tiny_requests import request_for
from tests.workers.zoo.minis import mini_ref, text_tokens
from workers.api import Canary, Manifest
from workers.calibration import Windows
from workers.evaluate import open_evaluator, score_perplexity
from workers.evaluator import IMAGE_MARK, Evaluator, ImagePrompt, ShowsImages
from workers.export import ordinary, write_dense
from workers.image_questions import MAX_NEW_TOKENS
from workers.layout import checkpoint_directory
from workers.pipeline import quantize
from workers.zoo import MINIS, zoo_path
from workers.zoo.images.folder import asked
from workers.zoo.images.scenes import SEEDS, draw, scene

WINDOW_TOKENS, CALIBRATION_WINDOWS, MAX_LENGTH = 256, 8, 300
PROMPT_TOKENS, NEW_TOKENS = (7, 30, 61), 8
NUM_IMAGES = 20  # held-out pictures, each with a question of every kind
SIXTEEN = 16


@dataclass(frozen=True)
class Checkpoint:
    """A directory that engines load, and the canary of its manifest."""

    model: str
    bits: int
    directory: Path
    canary: Canary


@dataclass(frozen=True)
class Scored:
    """By one engine. continuations: greedy, of prompts of PROMPT_TOKENS. answers: about pictures, of models that see.

    seconds: of loading and scoring, wall time.
    """

    perplexity: float
    canary_difference: float
    continuations: list[list[int]]
    answers: list[str]
    swap: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """What both engines say of a checkpoint."""

    model: str
    bits: int
    transformers: Scored
    vllm: Scored

    @property
    def difference(self) -> float:
        """Of vLLM's perplexity from that of Transformers, relative."""
        return self.vllm.perplexity / self.transformers.perplexity - 1


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--models", nargs="+", default=MINIS)
    arguments.add_argument("--bits", nargs="+", type=int, default=[SIXTEEN, 3])
    arguments.add_argument("--windows", type=int, default=40, help="of held-out text, 256 tokens each")
    arguments.add_argument("--dtype", default="float32")
    arguments.add_argument("--results", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = [checkpoint(name, bits, Path(temporary)) for name in given.models for bits in given.bits]
        rows = compare(made, given.windows, given.dtype)
    print(f"{'':18} {'bits':>4} {'Transformers':>13} {'vLLM':>9} {'relative':>9} {'canary':>8} greedy answers  vLLM s")
    for row in rows:
        same = "same" if row.vllm.continuations == row.transformers.continuations else "differ"
        pairs = list(zip(row.vllm.answers, row.transformers.answers, strict=True))
        answers = f"{sum(one == other for one, other in pairs)}/{len(pairs)}" if pairs else ""
        print(
            f"{row.model:18} {row.bits:4} {row.transformers.perplexity:13.4f} {row.vllm.perplexity:9.4f} "
            f"{row.difference:9.1e} {row.vllm.canary_difference:8.1e} {same:6} {answers:>7} {row.vllm.seconds:7.1f}",
            row.vllm.swap,
        )
    if given.results:
        given.results.write_text(json.dumps([asdict(row) | {"difference": row.difference} for row in rows]))


def checkpoint(name: str, bits: int, folder: Path) -> Checkpoint:
    """Quantize a mini, or only take its canary at SIXTEEN bits."""
    windows = np.array(text_tokens("calibration")[: CALIBRATION_WINDOWS * WINDOW_TOKENS]).reshape(-1, WINDOW_TOKENS)
    storage = folder / f"{name}-{bits}"
    method, scheme = ("none", None) if bits == SIXTEEN else ("gptq", UniformScheme(bits=bits))
    asked = replace(request_for(zoo_path(name), storage, method, scheme, windows=windows), model=mini_ref(name))
    manifest = quantize(asked)
    assert isinstance(manifest, Manifest)
    directory = zoo_path(name)
    if bits != SIXTEEN:
        directory = storage / "dense"
        write_dense(checkpoint_directory(storage, asked.quantize_key), directory, "float32")
    return Checkpoint(name, bits, directory, manifest.canary)


def compare(checkpoints: Sequence[Checkpoint], num_windows: int, dtype: str) -> list[Row]:
    """Transformers first: importing vLLM changes the process for good."""
    tokens = np.array(text_tokens("held_out")[: num_windows * WINDOW_TOKENS]).reshape(num_windows, WINDOW_TOKENS)
    by_transformers = _scored("transformers", checkpoints, tokens, dtype)
    by_vllm = _scored("vllm", checkpoints, tokens, dtype)
    return [Row(one.model, one.bits, *both) for one, *both in zip(checkpoints, by_transformers, by_vllm, strict=True)]


def _scored(engine: str, checkpoints: Sequence[Checkpoint], tokens: Windows, dtype: str) -> list[Scored]:
    evaluator = open_evaluator(engine, 1)
    try:
        return [_of_checkpoint(evaluator, one, tokens, dtype) for one in checkpoints]
    finally:
        evaluator.close()


def _of_checkpoint(evaluator: Evaluator, one: Checkpoint, tokens: Windows, dtype: str) -> Scored:
    began = time.perf_counter()
    with ordinary(one.directory) as directory:
        loaded = evaluator.load(directory, dtype, one.canary, MAX_LENGTH)
    (perplexity, _) = score_perplexity(evaluator, "held_out", tokens)
    prompts = [tokens[0, :length].tolist() for length in PROMPT_TOKENS]
    continuations = evaluator.generate(prompts, NEW_TOKENS, [])
    answers: list[str] = []
    if mini_ref(one.model).architecture in SEEING:
        assert isinstance(evaluator, ShowsImages)
        answers = evaluator.answer([prompt for prompt, _ in questions()], MAX_NEW_TOKENS)
    seconds = time.perf_counter() - began
    return Scored(perplexity.value, loaded.canary_difference, continuations, answers, loaded.swap, seconds)


def questions() -> list[tuple[ImagePrompt, str]]:
    """What models that see are asked about held-out pictures, and the right answers."""
    seed = SEEDS["held_out"]
    pictures = [Image.fromarray(draw(scene(seed, index))) for index in range(NUM_IMAGES)]
    return [
        (ImagePrompt(f"{IMAGE_MARK}\n{question.text}", (picture,)), question.answer)
        for index, picture in enumerate(pictures)
        for question in asked(seed, index)
    ]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
