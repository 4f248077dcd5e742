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


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("exact_match_strict-match", Kind.ACCURACY),
        ("acc_norm", Kind.ACCURACY),
        ("average", Kind.ACCURACY),
        ("accidents", Kind.OTHER),
        ("exact", Kind.OTHER),
    ],
)
def test_a_filter_behind_its_name_leaves_a_metric_what_it_is(metric: str, kind: Kind) -> None:
    assert parse(f"metric.gsm8k.{metric}").kind is kind


def test_a_column_without_a_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric\.<task>\.<metric>"):
        parse("metric.acc")


def test_only_accuracies_have_a_chance_level() -> None:
    assert parse("metric.piqa.acc").chance == CHANCE["piqa"] == 0.5
    assert parse("metric.lambada_openai.perplexity").chance is None


def test_the_first_perplexity_leads() -> None:
    assert primary(["metric.a.acc", "metric.b.perplexity", "metric.c.perplexity"]) == "metric.b.perplexity"
    assert primary(["metric.a.acc"]) is None
