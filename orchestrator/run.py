"""One sweep from resolved cells to tables: lease, schedule, MLflow, report."""

import datetime
import importlib.metadata
import shlex
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from conf.errors import ConfigError
from conf.schema import ClusterConf, NodeConf
from orchestrator import results
from orchestrator.background import Background
from orchestrator.cell import Cell, CellStatus
from orchestrator.cluster import declared_nodes
from orchestrator.driver import Driver
from orchestrator.events import Stage
from orchestrator.history import last_failure
from orchestrator.inline_scheduler import InlineScheduler
from orchestrator.jobs import make_jobs
from orchestrator.needs import write_needs
from orchestrator.preflight import preflight
from orchestrator.progress import SweepProgress
from orchestrator.resolve import resolve
from orchestrator.scheduler import RayScheduler
from orchestrator.storage import CellState, Storage
from orchestrator.sweep import Sweep
from orchestrator.views import mark_shown, print_outcome, run_ids, views_are_current, write_views
from workers.api import FailureKind
from workers.errors import LockedError, PrerequisiteError

if TYPE_CHECKING:
    from orchestrator.tracker import Tracker

RETRY_SECONDS = 60.0  # between two tries at an MLflow that has stopped answering
LAST_SECONDS = 300.0  # how long a sweep that has ended waits for a slow MLflow

WAIT_SECONDS = 2.0  # between two looks at the cells another sweep is running
UNFINISHED = (CellStatus.PENDING, CellStatus.CANCELLED)  # and what was lost with a worker or driver

Choose = Callable[[list[Cell], dict[str, CellState]], list[Cell]]


def run(
    sweep: Sweep,
    overrides: list[str],
    console: Console,
    statuses: tuple[CellStatus, ...],
    choose: Choose = lambda cells, states: cells,
) -> int:
    """Run the cells of these statuses among those that `choose` picks, and show the whole sweep.

    Returns the exit code. Raises ConfigError as `choose` does.
    """
    nodes = declared_nodes(sweep.cluster)
    cells = resolve(sweep, nodes, online=True)
    _say_notes(console, cells)
    storage = results.open_storage(sweep)
    needed = sorted({cell.quantize_key for cell in cells})
    results.write_record(sweep.name, results.SweepRecord(overrides, needed, str(storage.root), storage.id))
    write_needs(storage, sweep.name, needed)
    with storage.driving(sweep.name):
        if storage.end_abandoned(cells):
            console.print("an earlier driver went down in this sweep; its open cells run again", highlight=False)
        states = storage.states(cells)
        todo = [c for c in choose(cells, states) if states[c.key].status in _also_lost(statuses, states[c.key])]
        problem = None
        if todo or not views_are_current(sweep.name, cells, states):
            tracker = open_tracker(sweep, storage)
            view = Background(
                lambda: tracker.log_attempts(cells, storage.states(cells)),
                again=lambda: RETRY_SECONDS if tracker.problem is not None else None,
            )
            interrupted = False
            try:
                if todo:
                    _drive_to_the_end(sweep, todo, states, nodes, storage, console, view.ask)
            except KeyboardInterrupt:
                interrupted = True
                raise
            finally:
                tracker.deadline = time.monotonic() + LAST_SECONDS
                view.close(partial(console.print, f"MLflow is slow; waiting {LAST_SECONDS:.0f} s for it at most"))
                states = storage.states(cells)
                problem = show_sweep(sweep, tracker, cells, states, storage, interrupted=interrupted)
    print_outcome(console, sweep.name, cells, states, started_any=bool(todo))
    if problem is not None:
        console.print(problem, highlight=False)
        console.print(f"show the results there once it is back:  make sync ARGS='name={sweep.name}'", highlight=False)
    return max(_exit_code(states), int(problem is not None))


def show_sweep(
    sweep: Sweep,
    tracker: "Tracker",
    cells: list[Cell],
    states: dict[str, CellState],
    storage: Storage,
    *,
    interrupted: bool = False,
) -> str | None:
    """Tables and report, and the end of the sweep's run. Returns why MLflow does not show all of it, or null."""
    write_views(sweep, cells, states, storage, run_ids(tracker, states))
    status = CellStatus.FAILED if _exit_code(states) else CellStatus.SUCCEEDED
    tracker.close(CellStatus.CANCELLED if interrupted else status, results.sweep_directory(sweep.name))
    mark_shown(sweep.name, tracker.problem is None)
    return tracker.problem


def _also_lost(statuses: tuple[CellStatus, ...], state: CellState) -> tuple[CellStatus, ...]:
    """A cell whose driver died is unfinished, not failed: the next sweep takes it up."""
    failure = last_failure(state)
    lost = failure is not None and failure.kind is FailureKind.WORKER_LOST
    return (*statuses, CellStatus.FAILED) if lost else statuses


def _drive_to_the_end(
    sweep: Sweep,
    todo: list[Cell],
    states: dict[str, CellState],
    nodes: list[NodeConf],
    storage: Storage,
    console: Console,
    show: Callable[[], object],
) -> None:
    """Drive the cells that no other sweep has; wait for the rest, and drive what the others leave unfinished."""
    while todo:
        elsewhere = [cell for cell in todo if states[cell.key].status is CellStatus.RUNNING]
        if here := [cell for cell in todo if states[cell.key].status is not CellStatus.RUNNING]:
            elsewhere += _drive(sweep, here, states, nodes, storage, console, show)
        states = _wait_for_others(elsewhere, storage, console)
        todo = [c for c in elsewhere if states[c.key].status in _also_lost(UNFINISHED, states[c.key])]


def _wait_for_others(cells: list[Cell], storage: Storage, console: Console) -> dict[str, CellState]:
    """The states of cells that other sweeps have, once none of them is open any more."""
    said: set[str] = set()
    while True:
        storage.end_abandoned(cells)
        states = storage.states(cells)
        drivers = {a.driver for state in states.values() for a in state.attempts if a.result is None and a.driver}
        if not drivers:
            return states
        for sweep in sorted({driver.sweep for driver in drivers} - said):
            console.print(f"waiting for cells that {storage.driver_of(sweep)} is running", highlight=False)
            said.add(sweep)
        time.sleep(WAIT_SECONDS)


def _drive(
    sweep: Sweep,
    cells: list[Cell],
    states: dict[str, CellState],
    nodes: list[NodeConf],
    storage: Storage,
    console: Console,
    show: Callable[[], object],
) -> list[Cell]:
    """Drive cells to their ends; returns those that another sweep took first."""
    ready = _ready(cells, states, storage)
    jobs = make_jobs(cells, nodes, ready)
    console.print(f"{len(cells)} cells to run; starting Ray", highlight=False)
    scheduler = RayScheduler(sweep.cluster)
    try:
        preflight(cells, storage, scheduler, sweep)
        _refuse_unshared(sweep, len(scheduler.nodes()))
        to_make = {job.quantize_key: job.quantize_seconds for job in jobs if not job.checkpoint_ready}
        estimate = sum(job.evaluate_seconds for job in jobs) + sum(to_make.values())
        with SweepProgress(console, len(cells), estimate) as progress:
            return Driver(cells, jobs, states, storage, scheduler, progress, sweep.cluster, show).run()
    finally:
        scheduler.close()


def _ready(cells: list[Cell], states: dict[str, CellState], storage: Storage) -> set[str]:
    """The checkpoints that need no quantize stage.

    One that an evaluation has found damaged does: that stage looks at its contents, and makes it anew if need be.
    """
    doubtful = {cell.quantize_key for cell in cells if _is_doubted(states[cell.key])}
    return {key for cell in cells if (key := cell.quantize_key) not in doubtful and storage.has_checkpoint(key)}


def _is_doubted(state: CellState) -> bool:
    failure = last_failure(state)
    return failure is not None and (failure.stage, failure.kind) == (Stage.EVALUATE, FailureKind.BAD_INPUT)


def _refuse_unshared(sweep: Sweep, num_nodes: int) -> None:
    """Several nodes write through one storage; the default one is a directory of this machine."""
    if num_nodes > 1 and sweep.cluster.storage == ClusterConf.storage:
        raise PrerequisiteError(
            f"the cluster has {num_nodes} nodes, but {sweep.cluster.storage} is a directory of this machine; give one "
            "that every node sees: cluster.storage=<directory>"
        )


def run_inline(sweep: Sweep, console: Console) -> int:
    """Run the only cell of a sweep in this process, whatever its status, without MLflow."""
    nodes = declared_nodes(sweep.cluster)
    (cell,) = resolve(sweep, nodes, online=True)
    if cell.support is not None:
        raise ConfigError(f"{cell.label}: {cell.support}: {cell.support_reason}")
    _say_notes(console, [cell])
    storage = results.open_storage(sweep)
    with storage.driving(sweep.name):
        storage.end_abandoned([cell])
        states = storage.states([cell])
        if any(attempt.result is None for attempt in states[cell.key].attempts):
            raise LockedError(
                f"{cell.label} is being run by another sweep; wait for it, then run the same command again"
            )
        jobs = make_jobs([cell], nodes, _ready([cell], states, storage))
        scheduler = InlineScheduler()
        try:
            with SweepProgress(console, 1, 0.0) as progress:
                Driver([cell], jobs, states, storage, scheduler, progress, sweep.cluster).run()
        finally:
            scheduler.close()
    states = storage.states([cell])
    print_outcome(console, sweep.name, [cell], states, started_any=True)
    return _exit_code(states)


def open_tracker(sweep: Sweep, storage: Storage, *, restore: bool = False) -> "Tracker":
    """MLflow, tagged with what the numbers were made by. restore: as Tracker has it."""
    from orchestrator.tracker import Tracker

    tags = {f"ptqbench.version.{name}": _version(name) for name in ("ptq-bench", "ray", "mlflow", "torch")}
    tags |= {
        "ptqbench.git_commit": git_commit(),
        "ptqbench.started": datetime.datetime.now().isoformat("T", "seconds"),
        "ptqbench.command": shlex.join(["ptqbench", "sweep", *results.all_records()[sweep.name].overrides]),
    }
    mark_shown(sweep.name, False)  # from here on its run is open
    return Tracker(sweep.tracking, results.results_root(), storage, sweep.name, tags, restore=restore)


def git_commit() -> str:
    """The commit of this code, with a + when files were changed since."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _say_notes(console: Console, cells: list[Cell]) -> None:
    for note in dict.fromkeys(note for cell in cells for note in cell.notes):
        console.print(f"note: {note}", highlight=False)


def _exit_code(states: dict[str, CellState]) -> int:
    good = (CellStatus.SUCCEEDED, CellStatus.NOT_APPLICABLE)
    return 0 if all(state.status in good for state in states.values()) else 1
