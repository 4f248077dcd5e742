"""Teach a tower and its projector to see before the language model learns to say what they see.

A head that is thrown away afterwards reads from the token at each place what is there, and from each token which one it
is. Told from all tokens together, a language model knows what is there and not where: it learns to look for a place and
never for a thing. Without this stage an answer's loss says nothing for hundreds of steps. What has learned is frozen
then, as LLaVA freezes its tower: trained on, it forgets shapes before the language model has a word for them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from workers.zoo.images.scenes import COLORS, PLACES, SHAPES, SIZE, Scene, draw, scene
from workers.zoo.images.windows import WindowMaker
from workers.zoo.train import TrainRecipe, optimizers, schedule, set_rates

BATCH_SIZE = 64
HEAD_RATE = 1e-3
NOTHING = 1  # one more colour and one more shape: those of a place that is empty


def learn_to_see(model: Any, maker: WindowMaker, seed: int, recipe: TrainRecipe) -> float:
    """Train what `model.get_image_features` uses for recipe.sight_steps, then freeze it; the last loss in nats.

    Scenes are those of `seed`. The language model gets no gradient, and stays as it is.
    """
    optims: list[torch.optim.Optimizer] = optimizers(model, recipe)
    head: _Head | None = None
    loss = torch.zeros(())
    learning: list[nn.Parameter] = []
    for step in range(recipe.sight_steps):
        scenes = [scene(seed, step * BATCH_SIZE + i) for i in range(BATCH_SIZE)]
        pixels = maker.pixel_values([draw(each) for each in scenes])
        features = torch.stack(tuple(model.get_image_features(pixel_values=pixels).pooler_output))
        if head is None:
            head = _Head(*features.shape[1:])
            optims.append(torch.optim.AdamW(head.parameters(), lr=HEAD_RATE))
        set_rates(optims, schedule(step, recipe.sight_steps, recipe))
        loss = head.loss(features, scenes)
        loss.backward()
        learning = [parameter for parameter in model.parameters() if parameter.grad is not None]
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
    for parameter in learning:
        parameter.requires_grad_(False)
    return loss.item()


class _Head(nn.Module):
    """Reads from the token at each place the colour and the shape there, and from every token its number."""

    def __init__(self, num_tokens: int, hidden_size: int) -> None:
        super().__init__()
        side = math.isqrt(num_tokens)
        self.places = [y * side // SIZE * side + x * side // SIZE for x, y in PLACES.values()]
        self.what = nn.Linear(hidden_size, len(COLORS) + len(SHAPES) + 2 * NOTHING)
        self.which = nn.Linear(hidden_size, num_tokens)

    def loss(self, features: Tensor, scenes: list[Scene]) -> Tensor:
        """Sum of three mean cross-entropies in nats. features: [scenes, tokens, hidden], tokens row by row."""
        what = self.what(features[:, self.places]).flatten(0, 1)
        colors, shapes = what.split([len(COLORS) + NOTHING, len(SHAPES) + NOTHING], dim=1)
        true_colors, true_shapes = _truth(scenes)
        numbers = torch.arange(features.shape[1]).repeat(len(scenes))
        cross_entropy = nn.functional.cross_entropy
        seen = cross_entropy(colors, true_colors) + cross_entropy(shapes, true_shapes)
        return seen + cross_entropy(self.which(features).flatten(0, 1), numbers)


def _truth(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Number of the colour and of the shape at each place, [scenes * places] int64."""
    colors = torch.full((len(scenes), len(PLACES)), len(COLORS))
    shapes = torch.full((len(scenes), len(PLACES)), len(SHAPES))
    for number, each in enumerate(scenes):
        for thing in each.things:
            place = list(PLACES).index(thing.place)
            colors[number, place] = list(COLORS).index(thing.color)
            shapes[number, place] = SHAPES.index(thing.shape)
    return colors.flatten(), shapes.flatten()
