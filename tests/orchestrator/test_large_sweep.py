"""Sweeps of thousands of cells: what cells share is done once, and what is printed can be read."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from rich.console import Console

from conf import register
from conf.errors import ConfigError
from conf.schema import AwqScale, ModelConf
from orchestrator import resolve as resolving
from orchestrator import storage as storing
from orchestrator.cell import Cell, CellStatus
from orchestrator.cost_model import assumed_node
from orchestrator.listing import MAX_LINES, print_listing
from orchestrator.models import resolve_model
from orchestrator.plan import plan_cell, plan_cells, print_plan
from orchestrator.resolve import resolve
from orchestrator.storage import CellState, Storage, end_attempt, read_result
from orchestrator.sweep import NODES, Sweep, expand
from orchestrator.views import MAX_NAMED, print_status
from workers.methods.registry import STAGES

NODE = [assumed_node(2, 16.0)]
GRID = ["experiment=smoke", "method=rtn,gptq,awq", "bits=2,3,4", "group_size=null,32,64", "seed=range(0,20)"]
NUM_CELLS = 3 * 3 * 3 * 20


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return expand(GRID)


@pytest.fixture(scope="module")
def cells(sweep: Sweep) -> Iterator[list[Cell]]:
    """A third of them as if nobody had built AWQ's scale yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(STAGES, AwqScale)
        yield resolve(sweep, NODE, online=False)


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The same function, which keeps what it was called with."""

    def called(*arguments: Any, **keywords: Any) -> Any:
        calls.append(keywords.get("overrides") or arguments[0])
        return function(*arguments, **keywords)

    return called


# --- shared work -----------------------------------------------------------------------------------------------------


def test_hydra_composes_once_for_each_choice_of_options_however_many_cells_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(register, "hydra_compose", counted(hydra.compose, calls))
    assert len(expand(GRID).points) == NUM_CELLS
    options = [[], ["method=rtn"], ["method=gptq"], ["method=awq"], ["scheme=uniform"]]
    assert sorted(calls) == sorted(["experiment=smoke", *option] for option in options)


def test_points_share_equal_nodes(sweep: Sweep) -> None:
    distinct = {node: len({id(getattr(point.config, node)) for point in sweep.points}) for node in NODES}
    assert distinct == {**dict.fromkeys(NODES, 1), "method": 3, "scheme": 9, "seed": 20}


def test_a_model_is_resolved_once_for_all_its_cells(monkeypatch: pytest.MonkeyPatch, sweep: Sweep) -> None:
    calls: list[ModelConf] = []
    monkeypatch.setattr(resolving, "resolve_model", counted(resolve_model, calls))
    assert len(resolve(sweep, NODE, online=False)) == NUM_CELLS
    assert len(calls) == 1


def test_a_model_that_is_refused_is_looked_at_once_too(monkeypatch: pytest.MonkeyPatch, sweep: Sweep) -> None:
    def refuse(conf: ModelConf, *, online: bool) -> None:
        raise ConfigError(f"{conf.name} has no weights")

    calls: list[ModelConf] = []
    monkeypatch.setattr(resolving, "resolve_model", counted(refuse, calls))
    with pytest.raises(ConfigError, match="mini-llama has no weights"):
        resolve(sweep, NODE, online=False)
    assert len(calls) == 1


def test_cells_that_share_an_estimate_have_the_one_of_their_own(cells: list[Cell]) -> None:
    every_seventh = cells[::7]
    assert plan_cells(every_seventh, NODE) == [plan_cell(cell, NODE) for cell in every_seventh]


def test_an_attempt_that_has_ended_is_read_once_and_an_open_one_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[Cell]
) -> None:
    storage = Storage(tmp_path)
    ended, still_open = (storage.open_attempt(cell, 1) for cell in cells[:2])
    end_attempt(ended.directory, cells[0], CellStatus.SUCCEEDED, None)
    read: list[Path] = []
    monkeypatch.setattr(storing, "read_result", counted(read_result, read))
    first, second = storage.states(cells), storage.states(cells)
    assert first == second
    assert Counter(read) == {ended.directory: 1, still_open.directory: 2}
    end_attempt(still_open.directory, cells[1], CellStatus.CANCELLED, None)
    assert storage.states(cells)[cells[1].key].status is CellStatus.CANCELLED


# --- what is printed -------------------------------------------------------------------------------------------------


def planned(sweep: Sweep, cells: list[Cell], *, is_terminal: bool) -> str:
    said = io.StringIO()
    print_plan(Console(file=said, width=120, force_terminal=is_terminal, no_color=True), sweep, cells, {}, NODE)
    return re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())


def test_a_plan_in_a_file_has_a_line_for_every_cell(sweep: Sweep, cells: list[Cell]) -> None:
    lines = planned(sweep, cells, is_terminal=False).splitlines()
    assert [line.split("  ")[0] for line in lines[1 : NUM_CELLS + 1]] == [cell.label for cell in cells]


def test_a_plan_of_many_cells_on_a_terminal_has_a_line_for_each_model_and_method(
    sweep: Sweep, cells: list[Cell]
) -> None:
    assert NUM_CELLS > MAX_LINES
    said = planned(sweep, cells, is_terminal=True)
    rows = re.findall(r"^mini-llama +(\w+) +(\d+) (\w+) ", said, re.MULTILINE)
    assert rows == [("rtn", "180", "PENDING"), ("gptq", "180", "PENDING"), ("awq", "180", "NOT_IMPLEMENTED")]
    assert "540 cells by model and method" in said and "plan.txt" in said
    assert "540 cells: 360 PENDING, 180 NOT_IMPLEMENTED" in said
    assert len(said.splitlines()) < 30


def test_a_plan_of_few_cells_on_a_terminal_has_a_line_for_every_cell(sweep: Sweep, cells: list[Cell]) -> None:
    said = planned(sweep, cells[:MAX_LINES], is_terminal=True)
    assert sum(line.startswith("mini-llama") for line in said.splitlines()) == MAX_LINES


def test_the_status_of_many_cells_is_counted_on_a_terminal_and_listed_in_a_file(cells: list[Cell]) -> None:
    states = {cell.key: CellState(cell.support or CellStatus.PENDING, ()) for cell in cells}
    shown = {}
    for is_terminal in (True, False):
        said = io.StringIO()
        print_status(Console(file=said, width=120, force_terminal=is_terminal, no_color=True), "mine", cells, states)
        shown[is_terminal] = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    assert re.search(r"^mini-llama +awq +180 NOT_IMPLEMENTED$", shown[True], re.MULTILINE)
    assert len(shown[True].splitlines()) < MAX_NAMED
    assert all(f"\n{cell.label} " in shown[False] for cell in cells)


def test_a_listing_is_aligned_and_its_remarks_are_as_long_as_they_like() -> None:
    said = io.StringIO()
    rows = [["a", "DONE", "1.5", "10"], ["longer", "REFUSED", "x" * 300], ["b", "OPEN", ""]]
    print_listing(Console(file=said, width=40), ["cell", "status", "hours", "GiB"], rows, num_words=2)
    assert said.getvalue().splitlines() == [
        "cell    status   hours  GiB",
        "a       DONE       1.5   10",
        "longer  REFUSED  " + "x" * 300,
        "b       OPEN",
    ]
