"""One sweep from resolved cells to tables: lease, schedule, MLflow, report."""

import datetime
import importlib.metadata
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from conf.errors import ConfigError
from conf.schema import ClusterConf, NodeConf
from orchestrator import results
from orchestrator.cell import Cell, CellStatus
from orchestrator.cluster import declared_nodes
from orchestrator.driver import Driver, close_abandoned
from orchestrator.inline_scheduler import InlineScheduler
from orchestrator.jobs import make_jobs
from orchestrator.preflight import preflight
from orchestrator.progress import SweepProgress
from orchestrator.resolve import resolve
from orchestrator.scheduler import RayScheduler
from orchestrator.storage import CellState, Storage
from orchestrator.sweep import Sweep
from orchestrator.views import mark_shown, print_outcome, run_ids, views_are_current, write_views
from workers.api import FailureKind
from workers.errors import PrerequisiteError

if TYPE_CHECKING:
    from orchestrator.tracker import Tracker

Chosen = Callable[[Cell, CellState], bool]


def run(
    sweep: Sweep,
    overrides: list[str],
    console: Console,
    statuses: tuple[CellStatus, ...],
    chosen: Chosen = lambda cell, state: True,
) -> int:
    """Run the cells of these statuses that `chosen` picks, and show the whole sweep. Returns the exit code."""
    nodes = declared_nodes(sweep.cluster)
    cells = resolve(sweep, nodes, online=True)
    _say_notes(console, cells)
    storage = Storage(Path(sweep.cluster.storage))
    results.write_record(sweep.name, results.SweepRecord(overrides, sorted({cell.quantize_key for cell in cells})))
    with storage.lease(sweep.name):
        if close_abandoned(cells, storage.states(cells)):
            console.print("an earlier driver went down in this sweep; its open cells run again", highlight=False)
        states = storage.states(cells)
        todo = [
            c for c in cells if states[c.key].status in _also_lost(statuses, states[c.key]) and chosen(c, states[c.key])
        ]
        problem = None
        if todo or not views_are_current(sweep.name, cells, states):
            tracker = open_tracker(sweep)
            interrupted = False
            try:
                if todo:
                    show = partial(_show_attempts, tracker, cells, storage)
                    _drive(sweep, todo, nodes, storage, console, show)
            except KeyboardInterrupt:
                interrupted = True
                raise
            finally:
                states = _show_attempts(tracker, cells, storage)
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


def _show_attempts(tracker: "Tracker", cells: list[Cell], storage: Storage) -> dict[str, CellState]:
    states = storage.states(cells)
    tracker.log_attempts(cells, states, storage)
    return states


def _also_lost(statuses: tuple[CellStatus, ...], state: CellState) -> tuple[CellStatus, ...]:
    """A cell whose driver died is unfinished, not failed: the next sweep takes it up."""
    failure = state.last.result.failure if state.last and state.last.result else None
    lost = failure is not None and failure.kind is FailureKind.WORKER_LOST
    return (*statuses, CellStatus.FAILED) if lost else statuses


def _drive(
    sweep: Sweep,
    cells: list[Cell],
    nodes: list[NodeConf],
    storage: Storage,
    console: Console,
    show: Callable[[], object],
) -> None:
    ready = {cell.quantize_key for cell in cells if storage.has_checkpoint(cell.quantize_key)}
    jobs = make_jobs(cells, nodes, ready)
    console.print(f"{len(cells)} cells to run; starting Ray", highlight=False)
    scheduler = RayScheduler(sweep.cluster)
    try:
        preflight(cells, storage, scheduler)
        _refuse_unshared(sweep, len(scheduler.nodes()))
        estimate = sum(job.quantize_seconds + job.evaluate_seconds for job in jobs)
        with SweepProgress(console, len(cells), estimate) as progress:
            Driver(cells, jobs, storage, scheduler, progress, sweep.cluster, show).run()
    finally:
        scheduler.close()


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
    storage = Storage(Path(sweep.cluster.storage))
    ready = {cell.quantize_key} if storage.has_checkpoint(cell.quantize_key) else set()
    scheduler = InlineScheduler()
    try:
        with SweepProgress(console, 1, 0.0) as progress:
            Driver([cell], make_jobs([cell], nodes, ready), storage, scheduler, progress, sweep.cluster).run()
    finally:
        scheduler.close()
    states = storage.states([cell])
    print_outcome(console, sweep.name, [cell], states, started_any=True)
    return _exit_code(states)


def open_tracker(sweep: Sweep) -> "Tracker":
    """MLflow, tagged with what the numbers were made by."""
    from orchestrator.tracker import Tracker

    tags = {f"ptqbench.version.{name}": _version(name) for name in ("ptq-bench", "ray", "mlflow", "torch")}
    tags |= {
        "ptqbench.git_commit": git_commit(),
        "ptqbench.started": datetime.datetime.now().isoformat("T", "seconds"),
        "ptqbench.command": shlex.join(["ptqbench", "sweep", *results.all_records()[sweep.name].overrides]),
    }
    mark_shown(sweep.name, False)  # from here on its run is open
    return Tracker(sweep.tracking, results.results_root(), sweep.name, tags)


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
