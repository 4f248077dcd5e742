"""Answers to questions about images, scored by hand."""

import pytest

from workers.image_scores import (
    YES_NO_METRICS,
    Verdict,
    chosen_letter,
    exact_match,
    normalised,
    option_letter,
    says_yes,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "accepted", "worth"),
    [
        ("Red.", ["red"], 1.0),
        (" red \n", ["blue", "RED"], 1.0),
        ("dark red", ["red"], 0.0),
        ("", ["red"], 0.0),
        ("3.5", ["3.5"], 1.0),
    ],
)
def test_exact_match_sees_past_case_and_a_final_period(answer: str, accepted: list[str], worth: float) -> None:
    assert exact_match(answer, accepted) == worth


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B.", "B"),
        ("B. the moon", "B"),
        ("B\nbecause", "B"),
        ("The answer is C.", "C"),
        ("I think. The answer is A", "A"),
        ("The answer is Apple", None),
        ("D", None),  # three choices
        ("b", None),
        ("the moon", None),
        ("Because", None),
        ("", None),
    ],
)
def test_the_letter_an_answer_names(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, 3) == letter


def test_an_option_letter_is_right_or_wrong() -> None:
    assert (option_letter("B", 1, 3), option_letter("B", 2, 3), option_letter("moon", 0, 3)) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("The Cat", "cat"),
        ("an  apple\tpie", "apple pie"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("coca-cola", "coca cola"),
        ("coca- cola", "coca cola"),
        ("end.", "end"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("what?", "what"),
        ("dog's", "dog 's"),
        ("a", ""),
    ],
)
def test_an_answer_in_its_normal_form(written: str, form: str) -> None:
    assert normalised(written) == form


def test_apostrophes_of_contractions_make_no_difference() -> None:
    assert normalised("can't") == normalised("cant") != normalised("can")
    assert normalised("couldn'tve") == normalised("couldn't've")
    assert normalised("o'brien") == "o'brien"


@pytest.mark.parametrize(
    ("same", "accuracy"),
    [
        (0, 0.0),
        (1, 9 / 10 * 1 / 3),  # nine people have one other who said it
        (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (3, (3 * 2 / 3 + 7 * 1) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_the_accuracy_of_an_answer_that_so_many_of_ten_gave(same: int, accuracy: float) -> None:
    given = ["Stop!"] * same + [f"other {i}x" for i in range(10 - same)]
    assert vqa_accuracy("stop", given) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is not.", False),
        ("There is not a dog", False),
        ("Yes. There is no cat.", True),  # the first sentence counts
        ("Nothing", True),
        ("", True),
    ],
)
def test_what_is_read_as_yes(answer: str, yes: bool) -> None:
    assert says_yes(answer) is yes


def metrics(verdicts: list[Verdict]) -> dict[str, float]:
    return {name: of(verdicts) for name, of in YES_NO_METRICS.items()}


def test_yes_is_the_positive_class() -> None:
    """Three true positives, one false positive, two false negatives, four true negatives."""
    verdicts = [Verdict(True, True)] * 3 + [Verdict(True, False)] + [Verdict(False, True)] * 2
    assert metrics(verdicts + [Verdict(False, False)] * 4) == pytest.approx(
        {"acc": 0.7, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 0.4}
    )


def test_categories_are_averaged() -> None:
    found = metrics(
        [
            Verdict(True, True, "random"),
            Verdict(True, False, "popular"),
            Verdict(True, True, "popular"),
            Verdict(False, True, "popular"),
            Verdict(False, False, "popular"),
        ]
    )
    assert found == pytest.approx({"acc": 0.75, "precision": 0.75, "recall": 0.75, "f1": 0.75, "yes_ratio": 0.75})


def test_without_a_yes_nothing_is_divided_by_nothing() -> None:
    found = metrics([Verdict(False, False)])
    assert found == {"acc": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
