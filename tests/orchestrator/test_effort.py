"""What stands over a table: how much calibration and training its numbers rest on."""

from dataclasses import replace
from typing import Any

from conf.schema import BlockTune, CalibrationConf, MethodConf, NearestRound, NoRound
from orchestrator.cell import Cell, CellStatus
from orchestrator.effort import effort
from tests.orchestrator.hand_made import make_cell, make_config

TEXT = "128 windows of 32 tokens (text)"


def trained(name: str, **lengths: Any) -> Cell:
    method = MethodConf(name=name, category="optimization", tune=BlockTune(["clip"], **lengths), round=NearestRound())
    return make_cell(replace(make_config(), method=method))


def test_what_all_got_alike_is_said_once_and_nothing_of_a_baseline() -> None:
    baseline = MethodConf(name="none", category="baseline", round=NoRound())
    other = CalibrationConf(name="other", source="text", num_sequences=1, sequence_length=1)
    none = make_cell(replace(make_config(), method=baseline, calibration=other))
    assert effort([none, make_cell(), make_cell()]) == {"calibration": TEXT}
    assert effort([none]) == {}


def test_how_long_each_method_trains() -> None:
    steps = trained("autoround", epochs=0, iterations=50, batch_size=8)
    cells = [make_cell(), trained("omniquant", epochs=2), trained("lrquant", epochs=2), steps]
    assert effort(cells)["training"] == "omniquant, lrquant: 2 epochs; autoround: 50 steps of 8 windows"
    assert effort([trained("omniquant", epochs=1)])["training"] == "1 epoch"


def test_calibrations_that_differ_are_told_apart_by_their_methods() -> None:
    config = make_config()
    longer = replace(config.calibration, name="c4", num_sequences=4)
    awq = MethodConf(name="awq", category="salience", round=NearestRound())
    other = make_cell(replace(config, calibration=longer, method=awq))
    assert effort([make_cell(), other])["calibration"] == f"gptq: {TEXT}; awq: 4 windows of 32 tokens (c4)"


def test_cells_that_cannot_run_say_nothing() -> None:
    assert effort([make_cell(support=CellStatus.NOT_APPLICABLE)]) == {}
