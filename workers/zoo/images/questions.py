"""Questions about a scene: four kinds that one word answers, and a caption that says everything."""

from collections import Counter
from dataclasses import dataclass

from workers.zoo.images.scenes import Scene, Thing

NUMBERS = ("one", "two", "three", "four")
ONE_WORD = ("color", "shape", "count", "position")
CAPTION = "caption"


@dataclass(frozen=True)
class Question:
    """What is asked and what is right."""

    text: str
    answer: str


def questions(scene: Scene) -> dict[str, list[Question]]:
    """Everything that can be asked of a scene, by kind: ONE_WORD and CAPTION, none of them empty.

    A thing is named by its shape or colour alone only where it is the only one of it.
    """
    shapes = Counter(thing.shape for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    asked: dict[str, list[Question]] = {
        "color": [],
        "shape": [],
        "count": [Question("How many shapes are there?", NUMBERS[len(scene.things) - 1])],
        "position": [],
        CAPTION: [Question("Describe the image.", caption(scene))],
    }
    for thing in scene.things:
        asked["color"].append(Question(f"What color is the shape at the {thing.place}?", thing.color))
        asked["shape"].append(Question(f"What shape is at the {thing.place}?", thing.shape))
        asked["position"].append(Question(f"Where is the {thing.color} {thing.shape}?", thing.place))
        if shapes[thing.shape] == 1:
            asked["color"].append(Question(f"What color is the {thing.shape}?", thing.color))
            asked["position"].append(Question(f"Where is the {thing.shape}?", thing.place))
        if colors[thing.color] == 1:
            asked["shape"].append(Question(f"What shape is {thing.color}?", thing.shape))
    return asked


def caption(scene: Scene) -> str:
    """`A red circle at the left, a blue square at the top.`: things from left over right and top to bottom."""
    phrases = ", ".join(map(_phrase, scene.things))
    return f"{phrases[0].upper()}{phrases[1:]}."


def _phrase(thing: Thing) -> str:
    return f"a {thing.color} {thing.shape} at the {thing.place}"
