"""Perplexity of every method on real models, over calibration seeds: mean, standard deviation, CPU seconds, true bits.

Run as a script from the repository's root, with the directory of real models and texts at hand. One line of JSON for
each cell goes to the file `--results`, and what is there already is not done again: all of it takes hours on one core.
The table is printed at the end. A seed draws the calibration windows and whatever the method draws.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tests.bench.whole_models import SHARED, grid, perplexity, quantized, stream, windows_at_random

# What no YAML names; everything else is `method=NAME`.
NAMED = {"quip_gptaq": ["method=quip_gptq", "round@method.round=gptaq"]}
METHODS = ("rtn", "gptq", "quip", "quip_gptq")


def main() -> None:
    """Print the table of what was asked for."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", choices=["mini_reference", "stories260k"], default="mini_reference")
    arguments.add_argument("--methods", nargs="+", default=METHODS)
    arguments.add_argument("--bits", nargs="+", type=int, default=[2])
    arguments.add_argument("--group-size", type=int)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--results", type=Path)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    if not (SHARED / "models" / given.model).is_dir():
        raise SystemExit(f"no {SHARED / 'models' / given.model}: this benchmark needs real models")
    found = _known(given.results)
    calibration, held = _texts(given.model)
    for seed in given.seeds:
        for bits in given.bits:
            for method in given.methods:
                cell = (given.model, method, bits, given.group_size, seed)
                if cell not in found:
                    found[cell] = _measure(*cell, calibration, held)
                    _keep(given.results, cell, found[cell])
    _print({cell: figures for cell, figures in found.items() if cell[0] == given.model})


COLUMNS = ("model", "method", "bits", "group_size", "seed")
Cell = tuple[str, str, int, int | None, int]
Figures = dict[str, float]


def _measure(
    model: str, method: str, bits: int, group_size: int | None, seed: int, calibration: Tensor, held: Tensor
) -> Figures:
    overrides = [*NAMED.get(method, [f"method={method}"]), *grid(bits, group_size)]
    windows = windows_at_random(calibration, seed)
    made = quantized(SHARED / "models" / model, overrides, windows, seed)
    return {
        "perplexity": perplexity(made.model, held),
        "cpu_seconds": made.seconds,
        "bits_per_weight": made.bits_per_weight,
    }


def _texts(model: str) -> tuple[Tensor, Tensor]:
    """Tokens to calibrate on, and those to score."""
    directory = SHARED / "models" / model
    if model == "mini_reference":
        return stream(directory / "tokens_train.npy"), stream(directory / "tokens_held.npy")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    texts = (SHARED / "data" / "tinystories" / f"{name}.txt" for name in ("calibration", "evaluation"))
    first, second = (torch.tensor(tokenizer(text.read_text())["input_ids"]) for text in texts)
    return first, second


def _known(results: Path | None) -> dict[Cell, Figures]:
    if results is None or not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {tuple(line["cell"]): line["figures"] for line in lines}


def _keep(results: Path | None, cell: Cell, figures: Figures) -> None:
    print(*cell, {name: round(value, 3) for name, value in figures.items()}, flush=True)
    if results is not None:
        with results.open("a") as file:
            file.write(json.dumps({"cell": cell, "figures": figures}) + "\n")


def _print(found: dict[Cell, Figures]) -> None:
    rows = [dict(zip(COLUMNS, cell, strict=True)) | figures for cell, figures in found.items()]
    cells = pd.DataFrame(rows).fillna({"group_size": "row"}).groupby(["bits", "group_size", "method"])
    table = cells.agg(
        bits_per_weight=("bits_per_weight", "mean"),
        perplexity=("perplexity", "mean"),
        sd=("perplexity", "std"),
        seeds=("perplexity", "count"),
        cpu_seconds=("cpu_seconds", "mean"),
    )
    print(table.sort_values(["bits", "group_size", "perplexity"]).round(2).to_string())


if __name__ == "__main__":
    main()
