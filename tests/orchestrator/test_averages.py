import pytest

from orchestrator.averages import average_problems, averages, members
from workers.api import Metric

METRICS = [
    Metric("piqa.acc", 0.75, 0.03, 100, "fraction"),
    Metric("arc_challenge.acc_norm", 0.25, 0.04, 50, "fraction"),
    Metric("mmlu.acc", 0.5, None, 10, "fraction"),
]


def test_an_average_is_the_plain_mean_of_its_members() -> None:
    """Standard error of the mean of two independent numbers: sqrt(0.03^2 + 0.04^2) / 2."""
    (found,) = averages({"two": ["piqa.acc", "arc_challenge.acc_norm"]}, METRICS)
    assert (found.name, found.value, found.num_examples) == ("two.average", 0.5, 150)
    assert found.stderr == pytest.approx(0.025)


def test_without_one_standard_error_there_is_none() -> None:
    (found,) = averages({"two": ["piqa.acc", "mmlu.acc"]}, METRICS)
    assert (found.value, found.stderr) == (0.625, None)


def test_an_average_with_a_member_missing_is_left_out() -> None:
    assert averages({"two": ["piqa.acc", "race.acc"]}, METRICS) == []


def test_members_are_said() -> None:
    assert members({"a": ["x.acc", "y.acc"], "b": ["z.f1"]}) == "a = x.acc, y.acc; b = z.f1"
    assert members({}) is None


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([], "metrics are needed, each once"),
        (["piqa.acc", "piqa.acc"], "metrics are needed, each once"),
        (["piqa"], "`piqa` is no accuracy of a task"),
        (["wikitext2.perplexity"], "`wikitext2.perplexity` is no accuracy"),
        (["other.average"], "`other.average` is no accuracy"),
        ([".acc"], "`.acc` is no accuracy"),
    ],
)
def test_what_is_no_average_of_accuracies_is_refused(written: list[str], said: str) -> None:
    (problem,) = average_problems({"mine": written})
    assert problem.startswith("suite.averages.mine") and said in problem


def test_accuracies_with_and_without_a_filter_are_averaged() -> None:
    assert average_problems({"mine": ["piqa.acc", "arc.acc_norm", "gsm8k.exact_match_strict-match"]}) == []
