"""What a sweep will still write: the figures of `plan`, and whether they fit."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cluster import declared_nodes
from orchestrator.disk_needs import ATTEMPT_BYTES, artifacts, shortages, statistics_to_write, still_to_write
from orchestrator.memory_model import checkpoint_bytes
from orchestrator.plan import print_plan
from orchestrator.resolve import resolve
from orchestrator.sweep import expand
from tests.orchestrator.hand_made import make_cell, make_config, with_bits

GIB = 2**30


def test_the_figure_is_that_of_the_plan() -> None:
    sweep = expand(["experiment=paper", "cluster=a100x8", "method=none,gptq"])
    nodes = declared_nodes(sweep.cluster)
    cells = [cell for cell in resolve(sweep, nodes, online=False) if cell.support is None]
    said = io.StringIO()
    print_plan(Console(file=said, width=200), sweep, cells, {}, nodes)
    printed = re.search(r"([\d.]+) GiB of checkpoints", said.getvalue())
    assert printed is not None
    kept = still_to_write(cells, set(), 8).kept - len(cells) * ATTEMPT_BYTES
    assert kept / GIB == pytest.approx(float(printed[1]), abs=0.5) and kept > 10 * GIB


def test_a_shared_checkpoint_is_made_once_and_one_that_is_there_not_at_all() -> None:
    two, three = make_cell(with_bits(2)), make_cell(with_bits(3))
    again = replace(three, evaluate_key="f" * 64)
    packed = checkpoint_bytes("llama", three.shape, three.config.method, three.config.scheme, "packed")
    assert still_to_write([three, again], set(), 1).kept == packed + 2 * ATTEMPT_BYTES
    assert still_to_write([three, again, two], {two.quantize_key}, 1).kept == packed + 3 * ATTEMPT_BYTES


def test_each_stage_at_work_has_its_temporary_copy_though_its_checkpoint_is_there() -> None:
    cells = [make_cell(with_bits(bits)) for bits in (2, 3, 4)]
    made = {cell.quantize_key for cell in cells}
    one, two, many = (still_to_write(cells, made, count).temporary for count in (1, 2, 8))
    assert one > 0 and two == 2 * one and many == 3 * one


def test_statistics_are_counted_up_to_what_the_storage_may_hold_of_them() -> None:
    cells = [make_cell(with_bits(bits)) for bits in (2, 3)]
    hessians = 4 * (3 * 64**2 + 96**2)  # float32, of the first block
    assert statistics_to_write(cells, 1.0, held=0) == 2 * hessians
    assert statistics_to_write(cells, 1.0, held=GIB - 1000) == 1000
    assert statistics_to_write(cells, 1.0, held=2 * GIB) == statistics_to_write(cells, 0.0, held=0) == 0


def test_a_method_that_follows_the_original_alone_leaves_every_block_s_with_its_outputs() -> None:
    config = make_config()
    length, count = config.calibration.sequence_length, config.calibration.num_sequences
    method = replace(config.method, inputs="original")
    size = statistics_to_write([make_cell(replace(config, method=method))], 8.0, held=0)
    assert size == 2 * (4 * (3 * 64**2 + 96**2) + 4 * count * length * 64)


def test_mlflow_keeps_checkpoints_where_that_was_asked_for() -> None:
    cells = [make_cell()]
    packed = checkpoint_bytes("llama", cells[0].shape, cells[0].config.method, cells[0].config.scheme, "packed")
    assert artifacts(cells, upload_checkpoints=False) == ATTEMPT_BYTES
    assert artifacts(cells, upload_checkpoints=True) == ATTEMPT_BYTES + packed


def test_directories_of_one_disk_need_its_room_together(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert shortages({one: free // 3, two: free // 3}) == []
    (shortage,) = shortages({one: free * 2 // 3, two: free * 2 // 3})
    assert shortage.startswith(f"{one} and {two}: ") and "GiB free, the sweep needs about" in shortage
