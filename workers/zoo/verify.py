"""What ships, and whether it is what is written of it."""

import hashlib
import json
from typing import Any

import torch
from tokenizers import Tokenizer

from workers.model_parts import tokenizer_folder
from workers.transformers_images import load_model, load_processor
from workers.zoo import MINIS, ROOT, zoo_path
from workers.zoo.build import FIGURES, SUMS, TEXTS, encode
from workers.zoo.recipes import RECIPES
from workers.zoo.score import perplexity, share_answered

# Another processor sums in another order.
TOLERANCE = 0.01
ANSWERS_TOLERANCE = 0.005  # one of 320 answers may hang on the last bit


def overview() -> str:
    """One line for each recipe."""
    lines = [f"{'':20}{'parameters':>12}{'steps':>8}{'train':>8}{'dev':>8}{'held out':>10}"]
    for name in RECIPES:
        if name not in MINIS:
            lines.append(f"{name:20}{'not shipped; train it':>34}")
            continue
        figures = shipped_figures(name)
        scores = (figures[f"{text}_perplexity"] for text in ("train", "development", "held_out"))
        row = "{:8.2f}{:8.2f}{:10.2f}".format(*scores)
        lines.append(f"{name:20}{figures['num_parameters']:12,}{figures['recipe']['num_steps']:8}{row}")
    return "\n".join(lines)


def problems() -> list[str]:
    """What is wrong with the shipped files: their checksums, and the held-out perplexity of each model."""
    found = []
    for line in (ROOT / SUMS).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        if hashlib.sha256((ROOT / name).read_bytes()).hexdigest() != digest:
            found.append(f"{name} is not the file that was shipped; restore it from the repository")
    for name in MINIS:
        reported, measured = shipped_figures(name)["held_out_perplexity"], held_out_perplexity(name)
        if abs(measured - reported) > TOLERANCE:
            found.append(f"{name}: held-out perplexity {measured:.2f}, but {FIGURES} says {reported:.2f}")
    return found + [problem for name in MINIS if RECIPES[name].processor is not None for problem in _unanswered(name)]


def _unanswered(name: str) -> list[str]:
    reported = shipped_figures(name)["answered"]["16"]
    measured = share_answered(_model(name), load_processor(zoo_path(name)), "held_out")
    if abs(measured - reported) <= ANSWERS_TOLERANCE:
        return []
    return [f"{name}: {measured:.1%} of the held-out questions answered, but {FIGURES} says {reported:.1%}"]


def shipped_figures(name: str) -> dict[str, Any]:
    """figures.json of a shipped model."""
    return dict(json.loads(zoo_path(f"{name}/{FIGURES}").read_text(encoding="utf-8")))


def held_out_perplexity(name: str) -> float:
    """Of a shipped model, in float32."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder(zoo_path(name)) / "tokenizer.json"))
    held_out = zoo_path(f"{TEXTS}/held_out.txt").read_text(encoding="utf-8")
    return perplexity(_model(name), encode(tokenizer, held_out))


def _model(name: str) -> Any:
    return load_model(zoo_path(name), torch.float32)
