"""Known answers over the models of `several_models`."""

import pytest

from orchestrator.report import metrics
from orchestrator.report.losses import Loss, losses
from orchestrator.report.robustness import robustness
from orchestrator.report.robustness_tables import over_bits, over_modalities, over_structures
from orchestrator.report.tables import Table, TextCell
from tests.orchestrator.report.several_models import cells, of_model

PERPLEXITY, ACCURACY = metrics.parse("metric.held_out.perplexity"), metrics.parse("metric.questions.acc")


def found(**_: object) -> list[Loss]:
    return losses(cells(), PERPLEXITY)


def at(table: Table | None, section: int, method: str, column: str) -> TextCell:
    assert table is not None
    index = [name for name, _ in table.columns].index(column)
    (row,) = [row for row in table.sections[section].rows if row[0].lines == (method,)]
    return row[index]


def test_robustness_is_the_mean_and_the_worst_of_loss_and_rank() -> None:
    gptq = robustness([one for one in found() if (one.method, one.bits) == ("gptq", 2)])
    assert gptq is not None
    assert gptq.mean == pytest.approx((0.2 + 0.3 + 0.1 + 0.6 + 0.2) / 5)
    assert gptq.worst == pytest.approx(0.6)
    assert gptq.worst_at.subject.model == "mini-mamba"
    assert (gptq.mean_rank, gptq.worst_rank, gptq.num_values) == ((2 + 2 + 1 + 1 + 1) / 5, 2, 5)
    assert robustness([one for one in found() if one.missing]) is None


def test_over_bits_means_are_over_models_and_holes_name_theirs() -> None:
    table = over_bits(found())
    assert at(table, 0, "gptq", "2 bits") == TextCell(("+0.280", "worst +0.600 mini-mamba", "rank 1.4, worst 2"))
    quip = at(table, 0, "quip", "2 bits")
    assert quip.lines == ("+0.200", "worst +0.400 mini-mixtral", "rank 1.3, worst 2")
    assert [(mark.text, mark.tone) for mark in quip.marks] == [
        ("failed: numerical: mini-mamba", "bad"),
        ("not in the sweep: mini-llava", "quiet"),
    ]
    assert at(table, 0, "rtn", "all").lines == ("+0.700", "worst +3.000 mini-mamba", "rank 3.3, worst 4")
    assert table is not None and any("One seed" in note for note in table.notes)


def test_over_structures_each_is_a_column_and_each_width_a_section() -> None:
    table = over_structures(found())
    assert table is not None
    assert [name for name, _ in table.columns] == ["method", "dense MHA", "dense GQA", "MoE", "state space", "all"]
    assert [section.heading for section in table.sections] == [
        f"{bits} bits: suite mini, lane unified, one grid per row" for bits in (2, 4)
    ]
    assert at(table, 0, "quip", "MoE").lines == ("+0.400", "rank 2")
    assert at(table, 0, "gptq", "all").lines == ("+0.300", "worst +0.600 mini-mamba", "rank 1.5, worst 2")
    assert at(table, 0, "quip", "state space").lines == ()


def test_over_modalities_only_text_models_of_the_same_structure_stand_beside_those_that_see() -> None:
    images = {"image_tasks": "questions", ACCURACY.column: 0.8}
    fewer = images | {ACCURACY.column: 0.74}
    table = cells(
        of_model("mini-llava", "none", 16, 0.0, suite="seen", label="llava none seen", **images),
        of_model("mini-llava", "gptq", 2, 0.2, suite="seen", label="llava gptq seen", **fewer),
    )
    together = over_modalities(losses(table, PERPLEXITY), losses(table, ACCURACY))
    assert together is not None
    assert [name for name, _ in together.columns] == [
        "method",
        "text models",
        "vision-language models, text",
        "questions about images",
    ]
    assert at(together, 0, "gptq", "text models").lines == ("+0.200", "rank 2")
    assert at(together, 0, "gptq", "questions about images").lines == ()
    headings = [section.heading for section in together.sections]
    assert headings[1] == "2 bits: suite seen, lane unified, one grid per row"
    assert at(together, 1, "gptq", "questions about images").lines == ("+6.0 pt",)


def test_one_model_or_one_structure_has_no_robustness() -> None:
    alone = [one for one in found() if one.subject.model == "mini-llama"]
    assert over_bits(alone) is over_structures(alone) is over_modalities(alone, []) is None


def test_degraded_models_are_named() -> None:
    table = cells()
    table.loc[(table["model"] == "mini-mixtral") & (table["method"] == "gptq"), "degraded"] = "block 0: no tokens"
    shown = at(over_bits(losses(table, PERPLEXITY)), 0, "gptq", "2 bits")
    assert [(mark.text, mark.anchor) for mark in shown.marks] == [("degraded: mini-mixtral", "degraded")]
