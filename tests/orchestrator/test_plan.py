"""What a sweep would take, before anything is spent."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from conf.schema import NodeConf
from orchestrator.cell import CellStatus
from orchestrator.cost_model import assumed_node, evaluate_cost, quantize_cost
from orchestrator.plan import plan_cell, print_plan
from orchestrator.resolve import resolve
from orchestrator.storage import Storage, end_attempt
from orchestrator.sweep import expand
from workers.api import Failure, FailureKind

pytestmark = pytest.mark.usefixtures("quick_composition")
CPU = [assumed_node(2, 16.0)]
A100 = [NodeConf(num_gpus=8, gpu_memory_gib=80.0, num_cpus=128, memory_gib=2048.0, flops=3.12e14, bandwidth=2.039e12)]
SMALL = [NodeConf(num_gpus=1, gpu_memory_gib=24.0, num_cpus=16, memory_gib=64.0, flops=1.652e14, bandwidth=1.008e12)]


def printed(overrides: list[str], nodes: list[NodeConf], storage: Storage | None = None) -> str:
    said = io.StringIO()
    sweep = expand(overrides)
    cells = resolve(sweep, nodes, online=False)
    print_plan(Console(file=said, width=200), sweep, cells, storage.states(cells) if storage else {}, nodes)
    return said.getvalue()


def test_a_cell_of_7b_on_a_gpu(mine: list[str]) -> None:
    (cell,) = resolve(expand(["experiment=paper", "model=llama2-7b", "method=gptq", "bits=4"]), A100, online=False)
    plan = plan_cell(cell, A100)
    assert 0.2 < plan.hours < 2.0
    assert 12.0 < plan.device_gib < 24.0, "the weights in 16 bits, which the engine gets multiplied out"
    assert 3.0 < plan.disk_gib < 4.5, "4-bit codes of 7 billion weights"
    assert (plan.placement, plan.problem) == ("1 / 1", None)


def test_a_model_of_70b_needs_several_gpus_to_be_scored_and_one_to_be_quantized(mine: list[str]) -> None:
    (cell,) = resolve(expand(["experiment=paper", "model=llama2-70b", "method=gptq", "bits=4"]), A100, online=False)
    assert plan_cell(cell, A100).placement == "1 / 2"
    on_one_small_gpu = plan_cell(cell, SMALL)
    assert on_one_small_gpu.problem is not None and "fits no placement" in on_one_small_gpu.problem


def test_hours_count_every_gpu_that_a_stage_holds() -> None:
    overrides = ["experiment=paper", "model=llama2-70b", "method=rtn", "bits=4"]
    (cell,) = resolve(expand(overrides), A100, online=False)
    config, node = cell.config, A100[0]
    quantize = quantize_cost(
        "llama", cell.shape, config.method, config.scheme, config.calibration, config.numerics, node
    ).seconds
    evaluate = evaluate_cost("llama", cell.shape, config.method, config.scheme, "dense", config.suite, node, 2).seconds
    plan = plan_cell(cell, A100)
    assert plan.placement == "1 / 2"
    assert plan.hours == pytest.approx((quantize + 2 * evaluate) / 3600)


def test_the_papers_plan_has_every_cell_and_every_reason() -> None:
    said = printed(["experiment=paper"], A100)
    total = re.search(r"361 cells: (.+)", said)
    assert total is not None
    counts = [int(number) for number in re.findall(r"\d+", total[1])]
    assert sum(counts) == 361
    assert re.search(r"to do: \d+ GPU-h, \d+ GiB of checkpoints on results/storage \(cluster=a100x8; estimate", said)
    assert "Traceback" not in said


def test_what_is_done_is_not_counted_again(mine: list[str], tmp_path: Path) -> None:
    storage = Storage(tmp_path / "storage")
    overrides = [*mine, "bits=2,3"]
    cells = resolve(expand(overrides), CPU, online=False)
    before = printed(overrides, CPU, storage)
    assert "2 cells: 2 PENDING" in before
    end_attempt(storage.open_attempt(cells[0], 1).directory, cells[0], CellStatus.SUCCEEDED, None)
    failure = Failure("quantize", FailureKind.NUMERICAL, "NaN")
    end_attempt(storage.open_attempt(cells[1], 1).directory, cells[1], CellStatus.FAILED, failure)
    after = printed(overrides, CPU, storage)
    assert "2 cells: 1 SUCCEEDED, 1 FAILED" in after
    assert hours(after) == pytest.approx(hours(before) / 2, rel=0.3)


def hours(said: str) -> float:
    found = re.search(r"to do: ([\d.]+) hours", said)
    assert found is not None
    return float(found[1])


@pytest.mark.usefixtures("awq_not_built")
def test_notes_and_reasons_are_said_once(mine: list[str]) -> None:
    given = [text for text in mine if not text.startswith(("method=", "suite.sequence_length="))]
    said = printed([*given, "method=rtn,awq", "bits=2,3", "suite.sequence_length=100"], CPU)
    assert said.count("note: suite.sequence_length 100 -> 64") == 1
    assert said.count("2 x NOT_IMPLEMENTED: slot scale: AwqScale is not implemented") == 1


@pytest.mark.usefixtures("awq_not_built")
def test_what_is_not_built_is_estimated_beside_what_is_to_do(mine: list[str]) -> None:
    alone = printed([*mine, "bits=2"], CPU)
    beside = printed([*(text for text in mine if not text.startswith("method=")), "method=rtn,awq", "bits=2"], CPU)
    assert hours(beside) == hours(alone)
    assert "not implemented: " not in alone
    assert re.search(r"not implemented: [\d.]+ hours and \d+ GiB more", beside)


def test_a_checkpoint_that_cells_share_is_made_once(mine: list[str]) -> None:
    both = resolve(expand([*mine, "bits=2", "suite.limit=1,2"]), CPU, online=False)
    assert len({cell.quantize_key for cell in both}) == 1
    plan = plan_cell(both[0], CPU)
    said = hours(printed([*mine, "bits=2", "suite.limit=1,2"], CPU))
    assert said == pytest.approx(plan.quantize_hours + 2 * plan.evaluate_hours, rel=0.05), "two digits are printed"
    assert said < 0.9 * 2 * plan.hours
