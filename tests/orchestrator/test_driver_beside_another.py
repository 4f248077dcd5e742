"""A driver beside one of another sweep: what the other has opened, or ended since, is left to it."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from conf.schema import ClusterConf
from orchestrator import driver as driving
from orchestrator import run
from orchestrator.cell import Cell, CellStatus
from orchestrator.driver import Driver
from orchestrator.events import Job
from orchestrator.placement import Placement
from orchestrator.progress import SweepProgress
from orchestrator.storage import CellState, Storage, end_attempt
from tests.orchestrator.hand_made import make_cell, with_bits
from tests.orchestrator.test_driver import FakeScheduler
from tests.orchestrator.test_storage import write_manifest
from workers.api import AttemptResult, Failure, FailureKind, to_json
from workers.files import create

ONE_CPU = Placement(0, 1, 1.0)
TWO, THREE = make_cell(with_bits(2)), make_cell(with_bits(3))
ANOTHER_SUITE = replace(THREE, evaluate_key="f" * 64)  # of the same checkpoint


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(run, "WAIT_SECONDS", 0.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
def other(storage: Storage) -> Storage:
    return Storage(storage.root)


def drive(
    storage: Storage, cells: list[Cell], states: dict[str, CellState], scheduler: FakeScheduler, *, ready: bool = False
) -> list[Cell]:
    """Drive cells with what was known of them; returns those that were left."""
    jobs = [Job(c.key, c.quantize_key, "m", (ONE_CPU,), (ONE_CPU,), 1.0, 1.0, False, ready) for c in cells]
    with SweepProgress(Console(file=io.StringIO()), len(cells), 0.0) as progress:
        return Driver(cells, jobs, states, storage, scheduler, progress, ClusterConf(name="f", idle_seconds=0.0)).run()


def succeed(storage: Storage, cell: Cell) -> None:
    attempt = storage.open_attempt(cell, 1)
    create(attempt.directory / "result.json", to_json(AttemptResult(cell.key, cell.quantize_key, "SUCCEEDED")))


@pytest.mark.parametrize("ready", [False, True])
def test_a_cell_another_sweep_has_opened_is_not_started(storage: Storage, other: Storage, ready: bool) -> None:
    states, scheduler = storage.states([TWO, THREE]), FakeScheduler()
    with storage.driving("mine"), other.driving("theirs"):
        other.open_attempt(TWO, 1)
        assert drive(storage, [TWO, THREE], states, scheduler, ready=ready) == [TWO]
        assert [s.status for s in storage.states([TWO, THREE]).values()] == ["RUNNING", "SUCCEEDED"]
    assert scheduler.hosts == set()


def test_what_succeeded_elsewhere_since_it_was_chosen_is_not_run_again(storage: Storage, other: Storage) -> None:
    states, scheduler = storage.states([TWO]), FakeScheduler()
    succeed(other, TWO)
    assert drive(storage, [TWO], states, scheduler) == [TWO]
    assert scheduler.started == [] and len(storage.states([TWO])[TWO.key].attempts) == 1


def test_who_waits_for_the_same_checkpoint_goes_on_without_the_cell_that_is_left(
    storage: Storage, other: Storage
) -> None:
    cells = [THREE, ANOTHER_SUITE]
    states = storage.states(cells)
    with other.driving("theirs"):
        other.open_attempt(THREE, 1)
        assert drive(storage, cells, states, FakeScheduler()) == [THREE]
        assert [s.status for s in storage.states(cells).values()] == ["RUNNING", "SUCCEEDED"]


def test_a_checkpoint_that_cannot_be_made_fails_only_the_cells_that_are_ours(storage: Storage, other: Storage) -> None:
    cells, broken = [THREE, ANOTHER_SUITE], Failure("quantize", FailureKind.NUMERICAL, "NaN")
    states = storage.states(cells)
    with other.driving("theirs"):
        other.open_attempt(ANOTHER_SUITE, 1)
        assert drive(storage, cells, states, FakeScheduler(lambda number: broken)) == [ANOTHER_SUITE]
        assert [s.status for s in storage.states(cells).values()] == ["FAILED", "RUNNING"]


# --- waiting for the other -------------------------------------------------------------------------------------------


def test_cells_of_another_sweep_are_waited_for_until_it_has_ended_them(
    storage: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    with other.driving("theirs"):
        attempt = other.open_attempt(TWO, 1)
        looks = iter(range(3))

        def sleep(seconds: float) -> None:
            if next(looks) == 2:
                end_attempt(attempt.directory, TWO, CellStatus.CANCELLED, None)

        monkeypatch.setattr(time, "sleep", sleep)
        states = run._wait_for_others([TWO], storage, Console(file=said, width=200))
    assert states[TWO.key].status is CellStatus.CANCELLED and next(looks, None) is None
    assert said.getvalue().count("waiting for cells that sweep theirs, process") == 1


def test_cells_of_a_sweep_whose_driver_goes_down_are_waited_for_no_longer(storage: Storage, other: Storage) -> None:
    with other.driving("theirs"):
        other.open_attempt(TWO, 1)
    states = run._wait_for_others([TWO], storage, Console(file=io.StringIO()))
    assert states[TWO.key].status is CellStatus.FAILED
    assert CellStatus.FAILED in run._also_lost(run.UNFINISHED, states[TWO.key])


# --- a checkpoint that an evaluation has found damaged ---------------------------------------------------------------


def test_a_checkpoint_is_looked_at_again_where_an_evaluation_could_not_read_it(storage: Storage) -> None:
    write_manifest(storage, THREE.quantize_key)
    attempt = storage.open_attempt(THREE, 1)
    assert run._ready([THREE], storage.states([THREE]), storage) == {THREE.quantize_key}
    damaged = Failure("evaluate", FailureKind.BAD_INPUT, "block-00001.safetensors has 3 bytes")
    end_attempt(attempt.directory, THREE, CellStatus.FAILED, damaged)
    cells = [ANOTHER_SUITE, THREE]
    assert run._ready(cells, storage.states(cells), storage) == set()
    assert run._ready([ANOTHER_SUITE], storage.states(cells), storage) == {THREE.quantize_key}
