import math
from typing import Any

import pandas as pd
import pytest

from orchestrator.report import metrics
from orchestrator.report.columns import normalise
from orchestrator.report.pivots import pivot
from orchestrator.report.tables import Table, TextCell, accuracy_table, damage_table, value_table

PERPLEXITY = metrics.parse("metric.held_out.perplexity")


def at(table: Table, section: int, row: int, column: str) -> TextCell:
    index = [name for name, _ in table.columns].index(column)
    return table.sections[section].rows[row][index]


def test_a_value_stands_with_its_spread_and_its_true_bits(clean: pd.DataFrame) -> None:
    table = value_table(pivot(clean, PERPLEXITY))
    assert table.sections[0].heading == "mini-llama (llama): 16-bit 20.90"
    assert at(table, 0, 0, "2 bits") == TextCell(("57.02 ± 0.40", "2.25 b/w"))
    assert at(table, 0, 1, "2 bits") == TextCell(("29.65 ± 0.21", "2.25 b/w"), strong=True)


def test_damage_is_in_nats_and_as_a_multiple(clean: pd.DataFrame) -> None:
    table = damage_table(pivot(clean, PERPLEXITY))
    nats = (math.log(56.74 / 20.9) + math.log(56.74 * 1.01 / 20.9)) / 2
    assert at(table, 0, 0, "2 bits").lines == (f"+{nats:.3f} ± 0.007", "×2.728")


def test_holes_are_explained(clean: pd.DataFrame) -> None:
    table = value_table(pivot(clean, PERPLEXITY))
    (mark,) = at(table, 1, 1, "2 bits").marks
    assert (mark.text, mark.tone, mark.anchor) == ("failed: numerical", "bad", "failures")
    (mark,) = at(table, 1, 1, "3 bits").marks
    assert (mark.text, mark.anchor) == ("degraded", "degraded")
    for section in table.sections:
        assert all(cell.lines or cell.marks for row in section.rows for cell in row)


def test_a_seed_that_failed_is_counted_beside_the_mean_of_the_others(clean: pd.DataFrame) -> None:
    lost = (clean["model"] == "mini-llama") & (clean["method"] == "rtn") & (clean["bits"] == 4) & (clean["seed"] == 1)
    clean.loc[lost, "status"] = "FAILED"
    clean.loc[lost, "failure_kind"] = "OUT_OF_MEMORY"
    found = at(value_table(pivot(clean, PERPLEXITY)), 0, 0, "4 bits")
    assert found.lines[0] == "21.43"
    assert [mark.text for mark in found.marks] == ["1 of 2 failed: out of memory"]


def test_one_seed_is_said_to_have_no_spread(one_seed: pd.DataFrame) -> None:
    table = value_table(pivot(one_seed, PERPLEXITY))
    assert any("spread is unknown" in note for note in table.notes)
    assert not any(cell.strong for section in table.sections for row in section.rows for cell in row)


@pytest.mark.parametrize("status", ["FAILED", "PENDING"])
def test_without_a_baseline_damage_says_so(clean: pd.DataFrame, status: str) -> None:
    clean.loc[clean["method"] == "none", "status"] = status
    table = damage_table(pivot(clean, PERPLEXITY))
    assert table.sections[0].heading == f"mini-llama (llama): 16-bit {status.lower()}"
    assert [mark.text for mark in at(table, 0, 0, "3 bits").marks] == ["no 16-bit value"]


def test_a_model_without_a_baseline_in_the_sweep_says_so(clean: pd.DataFrame) -> None:
    table = value_table(pivot(clean[clean["method"] != "none"].reset_index(drop=True), PERPLEXITY))
    assert table.sections[0].heading == "mini-llama (llama): no 16-bit baseline in the sweep"


def test_group_size_and_lane_are_columns_only_when_they_vary(clean: pd.DataFrame) -> None:
    assert [name for name, _ in value_table(pivot(clean, PERPLEXITY)).columns] == [
        "method",
        "2 bits",
        "3 bits",
        "4 bits",
    ]
    clean.loc[clean["method"] == "gptq", "group_size"] = 128
    clean.loc[clean["method"] == "gptq", "lane"] = "published"
    table = value_table(pivot(clean, PERPLEXITY))
    assert [name for name, _ in table.columns] == ["method", "group", "lane", "2 bits", "3 bits", "4 bits"]
    assert (at(table, 0, 0, "group").lines, at(table, 0, 1, "group").lines) == (("row",), ("128",))


def test_accuracies_show_points_their_standard_error_and_chance(cell: Any) -> None:
    accuracy, error = "metric.piqa.acc", "metric.piqa.acc_stderr"
    cells = [
        cell("m", "none", 16, perplexity=20.0, **{accuracy: 0.7, error: 0.011}),
        cell("m", "gptq", 4, perplexity=21.0, **{accuracy: 0.65, error: 0.012}),
        cell("m", "gptq", 2, perplexity=90.0, **{accuracy: 0.52, error: 0.012}),
    ]
    table = accuracy_table(pivot(normalise(pd.DataFrame(cells)), metrics.parse(accuracy)))
    assert table.sections[0].heading == "m (m): 16-bit 70.0 (se 1.1)"
    assert at(table, 0, 0, "4 bits") == TextCell(("65.0", "−5.0 pt, se 1.2"))
    assert at(table, 0, 0, "2 bits").lines == ("52.0", "−18.0 pt, se 1.2")
    assert [mark.text for mark in at(table, 0, 0, "2 bits").marks] == ["at chance"]
    assert "Chance level: 50.0 %" in table.notes[0]
