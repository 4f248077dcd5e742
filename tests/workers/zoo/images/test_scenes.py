from collections import Counter

import numpy as np

from tests.workers.zoo.images.seen import seen
from workers.zoo.images.scenes import COLORS, PLACES, SEEDS, SHAPES, draw, scene

MANY = range(600)


def test_a_seed_and_an_index_give_one_picture() -> None:
    assert scene(3, 17) == scene(3, 17)
    assert (draw(scene(3, 17)) == draw(scene(3, 17))).all()
    pictures = {draw(scene(seed, index)).tobytes() for seed in SEEDS.values() for index in range(200)}
    assert len(pictures) == 200 * len(SEEDS)


def test_pictures_show_what_the_scene_says() -> None:
    for index in range(300):
        drawn = scene(0, index)
        assert seen(draw(drawn)) == {thing.place: (thing.color, thing.shape) for thing in drawn.things}


def test_no_colour_shape_place_or_number_is_favoured() -> None:
    """Even draws of n: expected n / k of each of k, standard deviation below its root; five of them either way."""
    scenes = [scene(0, index) for index in MANY]
    things = [thing for drawn in scenes for thing in drawn.things]
    for counts, kinds in (
        (Counter(len(drawn.things) for drawn in scenes), 4),
        (Counter(thing.color for thing in things), len(COLORS)),
        (Counter(thing.shape for thing in things), len(SHAPES)),
        (Counter(thing.place for thing in things), len(PLACES)),
    ):
        expected = sum(counts.values()) / kinds
        assert len(counts) == kinds
        assert max(abs(count - expected) for count in counts.values()) < 5 * np.sqrt(expected)
