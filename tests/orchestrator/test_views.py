"""What a person is told of failed and repeated cells: what, where, what next, and what was tried."""

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import cli, selection
from orchestrator.cell import CellStatus
from orchestrator.next_step import MAX_CELLS_NAMED, NEXT_STEPS, resubmit_command
from orchestrator.progress import SweepProgress
from orchestrator.storage import CellState, lost
from orchestrator.views import print_outcome, print_status
from tests.orchestrator.hand_made import make_cell, with_bits
from tests.orchestrator.tracked_sweep import NUMERICAL, Sweep
from workers.api import Failure, FailureKind

LOST = lost("quantize", "the worker process died")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    sweep = Sweep(tmp_path / "results")
    sweep.cells = [make_cell(with_bits(bits), label=f"tiny w{bits}") for bits in (2, 3, 4, 8)]
    return sweep


def status(sweep: Sweep) -> str:
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    print_status(console, sweep.name, sweep.cells, sweep.storage.states(sweep.cells))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_cells_that_failed_alike_are_told_of_together_with_the_command_for_them(sweep: Sweep) -> None:
    first, second, other, good = sweep.cells
    sweep.fail(first, NUMERICAL)
    sweep.fail(second, NUMERICAL)
    sweep.fail(other, Failure("evaluate", FailureKind.ENGINE, "it [bold]died[/]"))
    sweep.succeed(good)
    shown = status(sweep)
    assert "sweep mine: 3 FAILED, 1 SUCCEEDED" in shown
    assert shown.count(NUMERICAL.message.splitlines()[0]) == 1
    assert "FAILED  NUMERICAL in quantize, 2 cells" in shown and "FAILED  ENGINE in evaluate, 1 cell" in shown
    assert "it [bold]died[/]" in shown
    for cell in (first, second, other):
        last = sweep.storage.states([cell])[cell.key].last
        assert last is not None and f"{last.directory / 'log.txt'}" in shown
    assert NEXT_STEPS[FailureKind.NUMERICAL] in shown and NEXT_STEPS[FailureKind.ENGINE] in shown
    assert f"make resubmit ARGS='name=mine {first.key[:16]} {second.key[:16]}'" in shown
    assert f"make resubmit ARGS='name=mine {other.key[:16]}'" in shown


def test_a_repeated_cell_has_its_history_and_others_have_none(sweep: Sweep) -> None:
    repeated, once, *_ = sweep.cells
    sweep.fail(repeated, LOST)
    sweep.succeed(repeated)
    sweep.succeed(once)
    shown = status(sweep)
    assert "tiny w2: 2 attempts" in shown and "tiny w3: " not in shown
    first, second = (line for line in shown.splitlines() if line.startswith(("  1  ", "  2  ")))
    assert first.startswith("  1  WORKER_LOST in quantize after 0 s (20") and "the worker process died" in first
    assert second.startswith("  2  SUCCEEDED after 0 s (20")


def test_a_cell_that_is_being_run_again_after_a_failure_is_not_told_of_as_failed(sweep: Sweep) -> None:
    sweep.fail(sweep.cells[0], LOST)
    sweep.storage.open_attempt(sweep.cells[0], 2)
    shown = status(sweep)
    assert "FAILED" not in shown and "2  open (20" in shown


def test_the_outcome_names_the_command_for_all_failed_cells(sweep: Sweep) -> None:
    sweep.fail(sweep.cells[0], NUMERICAL)
    console = Console(file=io.StringIO(), width=200)
    print_outcome(console, "mine", sweep.cells, sweep.storage.states(sweep.cells), started_any=True)
    assert "make resubmit ARGS='name=mine'\n" in console.file.getvalue()  # type: ignore[attr-defined]


def test_every_kind_of_failure_has_a_next_step() -> None:
    assert set(NEXT_STEPS) == set(FailureKind)


@pytest.mark.parametrize("count", [1, MAX_CELLS_NAMED, MAX_CELLS_NAMED + 1])
def test_the_command_for_cells_is_one_the_command_line_takes(count: int) -> None:
    cells = [make_cell(with_bits(2 + number)) for number in range(count)]
    words = shlex.split(resubmit_command("a.b+c-d", cells, FailureKind.NO_OP))
    assert words[:2] == ["make", "resubmit"]
    parsed = cli._parser().parse_args(["resubmit", *shlex.split(words[2].removeprefix("ARGS="))])
    names, overrides = selection.split_names(parsed.overrides)
    assert overrides == ["name=a.b+c-d"]
    if count > MAX_CELLS_NAMED:
        assert parsed.failure == [FailureKind.NO_OP] and not names
    else:
        failed = CellState(CellStatus.FAILED, ())
        assert selection.named(cells, {cell.key: failed for cell in cells}, names) == cells


def test_the_time_left_follows_the_share_of_the_work_that_is_done(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the number of cells: here a third of the work is done after ten minutes, and no cell."""
    clock = iter([0.0])
    monkeypatch.setattr("orchestrator.progress.time.monotonic", lambda: next(clock, 600.0))
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with SweepProgress(console, 4, 300.0) as progress:
        progress.started(sweep.cells[0], "quantize")
        progress.ended(sweep.cells[0], 100.0)
    assert "ETA 20 min" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_failure_during_the_run_is_one_line_of_its_own(sweep: Sweep) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with SweepProgress(console, 4, 10.0) as progress:
        progress.failed(sweep.cells[0], LOST, final=False)
        progress.failed(sweep.cells[0], NUMERICAL, final=True)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    assert any(line.endswith("retry   tiny w2  WORKER_LOST in quantize: the worker process died") for line in lines)
    assert any(line.endswith("FAILED  tiny w2  NUMERICAL in quantize: layers.3: Hessian") for line in lines)
