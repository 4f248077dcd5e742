"""Scenes of one to four coloured shapes, and their pictures. Everything follows from a seed and an index."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZE = 48  # pixels of a side
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 50),
    "purple": (160, 60, 190),
    "white": (240, 240, 240),
}
# Centres in pixels, (x, y): a cell of 16 by 16 each, which the largest shape fills and no shape leaves.
PLACES = {"left": (8, 24), "right": (39, 24), "top": (24, 8), "bottom": (24, 39)}
RADII = (5, 6)
MAX_OFFSET = 1
MAX_TINT = 15  # a channel of a colour differs by so much from shape to shape
BACKGROUND = (30, 110)  # levels of grey

SEEDS = {"train": 0, "calibration": 1, "development": 2, "held_out": 3, "sight": 4}

Pixels = npt.NDArray[np.uint8]  # [SIZE, SIZE, 3], RGB


@dataclass(frozen=True)
class Thing:
    """One shape. center: (x, y) in pixels; tint: its very RGB, near that of its colour."""

    color: str
    shape: str
    place: str
    center: tuple[int, int]
    radius: int
    tint: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Things in the order of PLACES, no two in one place and no two of one colour and shape. background: grey level."""

    things: tuple[Thing, ...]
    background: int


def scene(seed: int, index: int) -> Scene:
    """Scene number `index` of a seed: how many things, where, and what they are are all drawn evenly."""
    random = np.random.default_rng([seed, index])
    count = int(random.integers(1, len(PLACES) + 1))
    taken = set(random.permutation(len(PLACES))[:count].tolist())
    places = [place for number, place in enumerate(PLACES) if number in taken]
    kinds = random.permutation(len(COLORS) * len(SHAPES))[:count].tolist()
    things = []
    for place, kind in zip(places, kinds, strict=True):
        color = list(COLORS)[kind // len(SHAPES)]
        x, y = (at + int(random.integers(-MAX_OFFSET, MAX_OFFSET + 1)) for at in PLACES[place])
        radius = int(random.choice(RADII))
        red, green, blue = (level + int(random.integers(-MAX_TINT, MAX_TINT + 1)) for level in COLORS[color])
        things.append(Thing(color, SHAPES[kind % len(SHAPES)], place, (x, y), radius, (red, green, blue)))
    return Scene(tuple(things), int(random.integers(*BACKGROUND)))


def draw(scene: Scene) -> Pixels:
    """The picture of a scene, without any smoothing of edges."""
    pixels = np.full((SIZE, SIZE, 3), scene.background, dtype=np.uint8)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    for thing in scene.things:
        pixels[_inside(thing, columns - thing.center[0], rows - thing.center[1])] = thing.tint
    return pixels


def _inside(thing: Thing, dx: npt.NDArray[np.int64], dy: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which pixels a thing covers, given how far right [1, SIZE] and how far below [SIZE, 1] of its centre they lie."""
    radius = thing.radius
    reach = np.maximum(abs(dx), abs(dy))
    inside: npt.NDArray[np.bool_]
    if thing.shape == "circle":
        inside = dx**2 + dy**2 <= radius**2
    elif thing.shape == "square":
        inside = reach < radius
    elif thing.shape == "triangle":
        inside = (2 * abs(dx) <= dy + radius) & (reach <= radius)
    else:
        inside = (np.minimum(abs(dx), abs(dy)) <= radius // 3) & (reach <= radius)
    return inside
