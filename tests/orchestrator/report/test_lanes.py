"""A cell of two lanes is computed once and stands in both, said to be the same."""

from typing import Any

import pandas as pd

from orchestrator.report import metrics
from orchestrator.report.columns import normalise
from orchestrator.report.lanes import in_every_lane
from orchestrator.report.panels import panels
from orchestrator.report.pivots import pivot
from orchestrator.report.provenance import calibration_table
from orchestrator.report.tables import value_table

PERPLEXITY = metrics.parse("metric.held_out.perplexity")


def cells_of_two_lanes(cell: Any) -> pd.DataFrame:
    """GPTQ's recipe is what the unified lane does, HQQ's differs; the baseline has none."""
    rows = [
        cell("m", "none", 16, perplexity=20.0, also_in_lane="published"),
        cell("m", "gptq", 3, perplexity=22.0, also_in_lane="published"),
        cell("m", "hqq", 3, perplexity=23.0),
        cell("m", "hqq", 3, perplexity=24.0, lane="published", label="m hqq 3-bit published seed=0"),
    ]
    return normalise(pd.DataFrame(rows))


def test_the_copy_stands_behind_its_original_and_the_baseline_has_none(cell: Any) -> None:
    shown = in_every_lane(cells_of_two_lanes(cell))
    assert list(zip(shown["method"], shown["lane"], shown["same_as"], strict=True)) == [
        ("none", "unified", None),
        ("gptq", "unified", None),
        ("gptq", "published", "unified"),
        ("hqq", "unified", None),
        ("hqq", "published", None),
    ]


def test_a_table_shows_it_in_both_lanes_and_says_so_in_the_second(cell: Any) -> None:
    table = pivot(cells_of_two_lanes(cell), PERPLEXITY)
    rows = {(row.method, row.lane): row.entries[3] for row in table.models[0].rows}
    assert rows["gptq", "unified"].values == rows["gptq", "published"].values == (22.0,)
    assert [mark.text for row in value_table(table).sections[0].rows for mark in row[-1].marks] == [
        "same cell as unified"
    ]
    assert {row.variant for row in table.models[0].rows} == {""}


def test_its_line_is_drawn_once(cell: Any) -> None:
    table = pivot(cells_of_two_lanes(cell), PERPLEXITY)
    (panel,) = panels(table, table.models[0])
    assert [one.label for one in panel.series] == ["gptq unified", "hqq unified", "hqq published"]
    assert panel.note == ""


def test_its_tokens_are_listed_in_both_lanes(cell: Any) -> None:
    table = calibration_table(cells_of_two_lanes(cell))
    assert table is not None
    shown = [(row[1].lines[0], row[4].lines[0]) for section in table.sections for row in section.rows]
    assert shown == [("unified", "gptq, hqq"), ("published", "gptq, hqq")]


def test_another_axis_tells_cells_apart_in_the_second_lane_too(cell: Any) -> None:
    cells = [
        cell("m", "gptq", 3, perplexity=22.0, label="m gptq damping=0.1", also_in_lane="published"),
        cell("m", "gptq", 3, perplexity=23.0, label="m gptq damping=0.2"),
        cell("m", "gptq", 3, perplexity=24.0, label="m gptq published damping=0.2", lane="published"),
    ]
    rows = pivot(normalise(pd.DataFrame(cells)), PERPLEXITY).models[0].rows
    assert [(r.lane, r.variant, r.entries[3].values) for r in rows] == [
        ("unified", "damping=0.1", (22.0,)),
        ("published", "damping=0.1", (22.0,)),
        ("unified", "damping=0.2", (23.0,)),
        ("published", "damping=0.2", (24.0,)),
    ]
