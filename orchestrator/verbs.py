"""What each verb does, from expansion to exit code."""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from conf.errors import ConfigError
from orchestrator import results, selection
from orchestrator.cell import Cell, CellStatus
from orchestrator.cluster import declared_nodes
from orchestrator.resolve import resolve
from orchestrator.storage import CellState, Storage
from orchestrator.sweep import Sweep, expand

RUNNABLE = (CellStatus.PENDING, CellStatus.CANCELLED, CellStatus.RUNNING)
GOOD = (CellStatus.SUCCEEDED, CellStatus.NOT_APPLICABLE)


def plan(arguments: argparse.Namespace, console: Console) -> int:
    """List the cells and what they would take. Always 0 when the configuration is sound."""
    from orchestrator.plan import print_plan

    sweep = expand(arguments.overrides)
    nodes = declared_nodes(sweep.cluster)
    cells = resolve(sweep, nodes, online=False)
    storage = Path(sweep.cluster.storage)
    states = Storage(storage).states(cells) if storage.is_dir() else {}
    print_plan(console, sweep, cells, states, nodes)
    return 0


def sweep(arguments: argparse.Namespace, console: Console) -> int:
    """Run what is not done yet. A failed cell is not run again: that is `resubmit`."""
    from orchestrator.run import run

    asked = expand(results.as_started(arguments.overrides))
    return run(asked, results.as_started(arguments.overrides), console, RUNNABLE)


def resubmit(arguments: argparse.Namespace, console: Console) -> int:
    """Run failed cells again: all of them, those that failed in some way, or those that are named."""
    from orchestrator.run import run

    def choose(cells: list[Cell], states: dict[str, CellState]) -> list[Cell]:
        chosen = selection.named(cells, states, names) if names else cells
        if not arguments.failure:
            return chosen
        if fitting := selection.failed_with(chosen, states, arguments.failure):
            return fitting
        there = selection.failures(chosen, states) or "none"
        console.print(f"no cell has failed with {', '.join(arguments.failure)}; failures: {there}", highlight=False)
        return []

    names, overrides = selection.split_names(arguments.overrides)
    overrides = results.continued(overrides)
    return run(expand(overrides), overrides, console, selection.ENDED_BADLY, choose)


def cell(arguments: argparse.Namespace, console: Console) -> int:
    """Run one cell in this process; errors keep their stack traces."""
    from orchestrator.run import run_inline

    asked = expand(arguments.overrides)
    if len(asked.points) != 1:
        raise ConfigError(
            f"`cell` runs one cell, this is {len(asked.points)}; give each axis one value, for example "
            "method=gptq bits=3"
        )
    return run_inline(asked, console)


def status(arguments: argparse.Namespace, console: Console) -> int:
    """Where each cell stands, from the storage."""
    from orchestrator.views import print_status

    sweep, cells, storage = _known(arguments.overrides)
    states = storage.states(cells)
    print_status(console, sweep.name, cells, states)
    return 0 if all(state.status in GOOD for state in states.values()) else 1


def report(arguments: argparse.Namespace, console: Console) -> int:
    """Rebuild tables and report from the storage."""
    from orchestrator.views import shown_run_ids, write_views

    sweep, cells, storage = _known(arguments.overrides)
    html = write_views(sweep, cells, storage.states(cells), storage, shown_run_ids(sweep.name))
    console.print(f"report: {html}", highlight=False)
    return 0


def sync(arguments: argparse.Namespace, console: Console) -> int:
    """Rebuild the MLflow view from the storage."""
    from orchestrator.run import open_tracker, show_sweep

    sweep, cells, storage = _known(arguments.overrides)
    with storage.lease(sweep.name):
        states = storage.states(cells)
        tracker = open_tracker(sweep, storage, restore=True)
        tracker.log_attempts(cells, states)
        problem = show_sweep(sweep, tracker, cells, states, storage)
    if problem is not None:
        console.print(problem, markup=False, highlight=False)
        return 1
    console.print(f"MLflow holds {tracker.num_runs} attempts of sweep {sweep.name}", highlight=False)
    return 0


def ui(arguments: argparse.Namespace, console: Console) -> int:
    """Serve the MLflow UI on loopback until Ctrl-C."""
    from orchestrator.tracker import runs_page, tracking_uri
    from orchestrator.ui import serve

    sweep = expand(results.as_started(arguments.overrides))
    if sweep.tracking.uri is not None:
        console.print(f"tracking is at {sweep.tracking.uri}", highlight=False)
        return 0
    page = runs_page(sweep.tracking, results.results_root())
    return serve(
        tracking_uri(sweep.tracking, results.results_root()),
        arguments.port,
        lambda address: console.print(f"MLflow UI: {address}{page}  (Ctrl-C ends it)", highlight=False),
    )


def gc(arguments: argparse.Namespace, console: Console) -> int:
    """Remove checkpoints that no sweep needs."""
    from orchestrator.gc import collect

    sweep = expand(results.as_started(arguments.overrides))
    return collect(results.open_storage(sweep), console, really=arguments.yes)


def zoo(arguments: argparse.Namespace, console: Console) -> int:
    """Rebuild the mini models: needs torch, so it is a process of its own."""
    return subprocess.call([sys.executable, "-m", "workers.zoo", *arguments.rest])


def kernels(arguments: argparse.Namespace, console: Console) -> int:
    """Which version of each kernel runs here."""
    return subprocess.call([sys.executable, "-m", "kernels"])


def _known(overrides: list[str]) -> tuple[Sweep, list[Cell], Storage]:
    """A sweep that was run before, resolved again."""
    sweep = expand(results.continued(overrides))
    return sweep, resolve(sweep, declared_nodes(sweep.cluster), online=False), results.open_storage(sweep)
