from typing import Any

import pandas as pd

from orchestrator.next_step import NEXT_STEPS
from orchestrator.report import provenance
from orchestrator.report.columns import normalise
from orchestrator.report.tables import Table
from workers.api import FailureKind


def lines(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [
        [", ".join([*cell.lines, *(mark.text for mark in cell.marks)]) for cell in row]
        for section in table.sections
        for row in section.rows
    ]


def test_the_headline_counts_cells_by_status(clean: pd.DataFrame) -> None:
    assert provenance.headline(clean) == [("cells", 26), ("succeeded", 24), ("failed", 2), ("degraded", 2)]


def test_a_finished_and_fair_sweep_has_no_warning(clean: pd.DataFrame) -> None:
    assert provenance.warnings(clean) == []


def test_different_calibration_tokens_in_the_unified_lane_are_a_warning(clean: pd.DataFrame) -> None:
    clean.loc[(clean["method"] == "gptq") & (clean["model"] == "mini-llama"), "calibration_hash"] = "ffff0000ffff0000"
    found = provenance.warnings(clean)
    assert len(found) == 2
    assert "mini-llama (lane unified, seed 0)" in found[0]
    assert "000000000000 for rtn; ffff0000ffff for gptq" in found[0]


def test_the_published_lane_may_use_any_calibration(clean: pd.DataFrame) -> None:
    clean.loc[clean["method"] == "gptq", "calibration_hash"] = "ffff0000ffff0000"
    clean.loc[clean["method"] == "gptq", "lane"] = "published"
    assert provenance.warnings(clean) == []


def test_a_model_scored_by_two_engines_is_a_warning(clean: pd.DataFrame) -> None:
    clean.loc[(clean["method"] == "gptq") & (clean["model"] == "mini-llama"), "engine"] = "transformers"
    (found,) = provenance.warnings(clean)
    assert "vllm for none, rtn; transformers for gptq" in found


def test_an_unfinished_sweep_says_so(clean: pd.DataFrame) -> None:
    clean.loc[0, "status"] = "PENDING"
    (found,) = provenance.warnings(clean)
    assert "1 pending" in found


def test_failures_with_one_message_are_one_line(clean: pd.DataFrame) -> None:
    cells = "mini-mamba gptq 2-bit seed=0, mini-mamba gptq 2-bit seed=1"
    assert lines(provenance.failure_table(clean)) == [
        [cells, "NUMERICAL", "layer 3: <H> | not PD", NEXT_STEPS[FailureKind.NUMERICAL]]
    ]


def test_cells_left_out_are_listed_with_their_reason(clean: pd.DataFrame, cell: Any) -> None:
    left_out = cell("mini-mamba", "awq", 3, status="NOT_APPLICABLE", failure_message="no scale group")
    cells = normalise(pd.concat([clean, pd.DataFrame([left_out])]))
    assert lines(provenance.left_out_table(cells)) == [
        ["mini-mamba awq 3-bit seed=0", "NOT_APPLICABLE", "no scale group"]
    ]


def test_nothing_to_list_is_no_table(clean: pd.DataFrame) -> None:
    assert provenance.left_out_table(clean) is None


def test_engines_and_their_reasons_are_listed_with_the_weights_they_loaded(clean: pd.DataFrame) -> None:
    reason, models = "listed in the capability table", "mini-llama, mini-mamba"
    assert lines(provenance.engine_table(clean)) == [
        ["vllm", "source", reason, models, "2"],
        ["vllm", "packed", reason, models, "22"],
    ]


def test_the_cost_table_has_a_line_for_every_cell(clean: pd.DataFrame) -> None:
    found = lines(provenance.cost_table(clean))
    assert found[1] == ["mini-llama rtn 2-bit seed=0", "SUCCEEDED", "2.250", "3.0", "12.5", "0", "4.0", "0.50", "1"]
    assert len(found) == len(clean)


def test_calibration_is_listed_by_model_lane_and_hash(clean: pd.DataFrame) -> None:
    assert lines(provenance.calibration_table(clean))[1] == ["mini-llama", "unified", "000000000001", "1", "rtn, gptq"]
