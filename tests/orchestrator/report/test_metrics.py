import pytest

from orchestrator.report.metrics import CHANCE, Kind, parse, primary


def test_a_column_is_taken_apart_at_its_first_and_last_dot() -> None:
    spec = parse("metric.wiki.text.v2.perplexity")
    assert (spec.task, spec.metric, spec.kind, spec.lower_is_better) == (
        "wiki.text.v2",
        "perplexity",
        Kind.PERPLEXITY,
        True,
    )


def test_an_unknown_metric_has_no_direction() -> None:
    assert parse("metric.task.surprise").lower_is_better is None


def test_a_column_without_a_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric\.<task>\.<metric>"):
        parse("metric.acc")


def test_only_accuracies_have_a_chance_level() -> None:
    assert parse("metric.piqa.acc").chance == CHANCE["piqa"] == 0.5
    assert parse("metric.lambada_openai.perplexity").chance is None


def test_the_first_perplexity_leads() -> None:
    assert primary(["metric.a.acc", "metric.b.perplexity", "metric.c.perplexity"]) == "metric.b.perplexity"
    assert primary(["metric.a.acc"]) is None
