"""`python -m workers.zoo`: rebuild the zoo into a folder of the same layout as this one."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from workers.zoo.recipe import MODEL, build
from workers.zoo.train import TrainRecipe

DEFAULT_OUT = Path("results", "zoo")


def main() -> int:
    """Exit code 0, or 2 when the folder holds a model already and --overwrite is not given."""
    parser = argparse.ArgumentParser(prog="python -m workers.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=TrainRecipe.num_steps, help="training steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads to train with (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    arguments = parser.parse_args()

    if (arguments.out / MODEL / "model.safetensors").exists() and not arguments.overwrite:
        print(f"{arguments.out / MODEL} holds a model; choose another --out or give --overwrite", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    figures = build(arguments.out, replace(TrainRecipe(), num_steps=arguments.steps))
    print(
        f"{arguments.out / MODEL}: trained in {figures.train_seconds:.0f} seconds; perplexity "
        f"{figures.train_perplexity:.2f} train, {figures.development_perplexity:.2f} development, "
        f"{figures.held_out_perplexity:.2f} held out"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
