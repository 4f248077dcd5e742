from collections import Counter, defaultdict

from tests.workers.zoo.images.seen import answer, seen
from workers.zoo.images.folder import asked
from workers.zoo.images.questions import CAPTION, ONE_WORD, questions
from workers.zoo.images.scenes import draw, scene


def test_every_answer_is_what_the_pixels_say() -> None:
    for index in range(200):
        things = seen(draw(scene(1, index)))
        by_kind = questions(scene(1, index))
        assert set(by_kind) == {*ONE_WORD, CAPTION}
        for kind in ONE_WORD:
            for question in by_kind[kind]:
                assert question.answer == answer(things, question.text), question
        (caption,) = by_kind[CAPTION]
        phrases = [f"a {color} {shape} at the {place}" for place, (color, shape) in things.items()]
        assert caption.answer.lower() == ", ".join(phrases) + "."


def test_no_question_is_asked_of_two_things_at_once() -> None:
    for index in range(200):
        of_kind = questions(scene(1, index))
        texts = [question.text for kind in of_kind.values() for question in kind]
        assert len(texts) == len(set(texts))


def test_no_answer_to_a_kind_of_question_is_much_more_frequent_than_others() -> None:
    """1000 of each kind: of four answers 250 expected, standard deviation 13.7; of six 167 and 11.8; six of them."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for index in range(1000):
        for kind, question in zip(ONE_WORD, asked(0, index), strict=True):
            answers[kind][question.answer] += 1
    assert {kind: len(counts) for kind, counts in answers.items()} == {
        "color": 6,
        "shape": 4,
        "count": 4,
        "position": 4,
    }
    for counts in answers.values():
        expected = 1000 / len(counts)
        assert all(abs(count - expected) < 6 * 13.7 for count in counts.values())
