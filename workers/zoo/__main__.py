"""`python -m workers.zoo`: list the mini models, verify those that ship, or train one anew."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from workers.zoo.build import build
from workers.zoo.recipes import RECIPES
from workers.zoo.verify import overview, problems

DEFAULT_OUT = Path("results", "zoo")


def main() -> int:
    """Exit code 0; 1 when a shipped file is not what is written of it; 2 when a folder holds a model already."""
    parser = argparse.ArgumentParser(prog="python -m workers.zoo", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="list | verify | train")
    verbs.add_parser("list", help="parameters and perplexity of every mini model (the default)")
    verbs.add_parser("verify", help="checksums, and held-out perplexities and answers computed again")
    training = verbs.add_parser("train", help="rebuild one into a folder of the same layout as this one")
    training.add_argument("name", choices=RECIPES)
    training.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write (%(default)s)")
    training.add_argument("--steps", type=int, help="training steps (the recipe's)")
    training.add_argument("--threads", type=int, default=2, help="threads to train with (%(default)s)")
    training.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    arguments = parser.parse_args()
    if arguments.verb == "train":
        return _train(arguments)
    found = problems() if arguments.verb == "verify" else []
    print("\n".join(found) if found else overview())
    return 1 if found else 0


def _train(arguments: argparse.Namespace) -> int:
    folder = arguments.out / arguments.name
    if any(folder.rglob("*.safetensors")) and not arguments.overwrite:
        print(f"{folder} holds a model; choose another --out or give --overwrite", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.name]
    if arguments.steps is not None:
        recipe = replace(recipe, train=replace(recipe.train, num_steps=arguments.steps))
    figures = build(arguments.out, arguments.name, recipe)
    print(
        f"{folder}: trained in {figures.train_seconds:.0f} seconds; perplexity "
        f"{figures.train_perplexity:.2f} train, {figures.development_perplexity:.2f} development, "
        f"{figures.held_out_perplexity:.2f} held out"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
