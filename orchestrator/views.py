"""What a person sees of a sweep: tables on the terminal, cells.csv, the report. All from the storage."""

import csv
import datetime
import platform
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from orchestrator import results
from orchestrator.averages import listed
from orchestrator.cell import Cell, CellStatus
from orchestrator.effort import effort
from orchestrator.history import history, last_failure
from orchestrator.listing import print_listing, shows_every_row
from orchestrator.next_step import NEXT_STEPS, resubmit_command
from orchestrator.report.render import write_report
from orchestrator.storage import CellState, Storage, attempt_name
from orchestrator.sweep import Sweep
from orchestrator.table import attempts_table, cells_table, stage_seconds, write_csv
from workers.api import FailureKind

if TYPE_CHECKING:
    from orchestrator.tracker import Tracker

COLOURS = {
    CellStatus.SUCCEEDED: "green",
    CellStatus.FAILED: "red",
    CellStatus.RUNNING: "cyan",
    CellStatus.CANCELLED: "yellow",
}
MAX_METRICS = 4
MAX_NAMED = 20  # of more cells than a terminal is read for
SHOWN = "shown"  # in a sweep's directory


def write_views(
    sweep: Sweep, cells: list[Cell], states: dict[str, CellState], storage: Storage, runs: dict[str, str]
) -> Path:
    """cells.csv, report.html and report.md of a sweep; returns the HTML file."""
    directory = results.sweep_directory(sweep.name)
    table = cells_table(cells, states, storage, runs)
    facts = {
        "sweep": sweep.name,
        "date": _last_end(states),
        "cluster": sweep.cluster.name,
        "storage": str(storage.root),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    facts |= effort(cells)
    facts |= {f"average {name}": f"of {of}" for cell in cells for name, of in listed(cell.config.suite.averages)}
    attempts = attempts_table(cells, states)
    with results.writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_csv(table, directory / "cells.csv")
        html, _ = write_report(table, attempts, directory, title=f"PTQ-Bench: {sweep.name}", facts=facts)
    return html


def views_are_current(name: str, cells: list[Cell], states: dict[str, CellState]) -> bool:
    """Whether a sweep's table and report, and MLflow, show these cells with their last attempts.

    They do not when the grid was edited, when another sweep has run cells of this one, when a driver went down (be it
    while it closed the sweep's run), or when MLflow could not be reached.
    """
    directory = results.sweep_directory(name)
    if not all((directory / name).is_file() for name in ("cells.csv", "report.html", SHOWN)):
        return False
    with (directory / "cells.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    last = {key: str(state.last.number) if state.last else "" for key, state in states.items()}
    now = [(cell.key, states[cell.key].status.value, last[cell.key]) for cell in cells]
    tracked = all(row["mlflow_run_id"] for row in rows if row["attempt"])
    return tracked and now == [(row["cell_key"], row["status"], row["attempt"]) for row in rows]


def mark_shown(name: str, shown: bool) -> None:
    """Say whether MLflow has all of a sweep and its run there is closed."""
    mark = results.sweep_directory(name) / SHOWN
    if shown:
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def _last_end(states: dict[str, CellState]) -> str:
    """When the last attempt ended: the same data, the same date."""
    ends = [
        (attempt.directory / "result.json").stat().st_mtime
        for state in states.values()
        for attempt in state.attempts
        if attempt.result is not None
    ]
    return datetime.datetime.fromtimestamp(max(ends)).isoformat(" ", "minutes") if ends else "nothing has run yet"


def run_ids(tracker: "Tracker", states: dict[str, CellState]) -> dict[str, str]:
    """Attempt -> MLflow run, for the attempts of these cells."""
    attempts = [attempt for state in states.values() for attempt in state.attempts]
    return {a.name: run for a in attempts if (run := tracker.run_id(a)) is not None}


def shown_run_ids(name: str) -> dict[str, str]:
    """Attempt -> MLflow run, as the sweep's cells.csv has them: a report need not ask MLflow."""
    path = results.sweep_directory(name) / "cells.csv"
    if not path.is_file():
        return {}
    rows = pd.read_csv(path, dtype={"cell_key": str, "mlflow_run_id": str}).dropna(subset=["mlflow_run_id", "attempt"])
    return {
        attempt_name(key, int(number)): run
        for key, number, run in zip(rows.cell_key, rows.attempt, rows.mlflow_run_id, strict=True)
    }


def print_status(console: Console, name: str, cells: list[Cell], states: dict[str, CellState]) -> None:
    """Counts, a line per cell with its metrics, what failed and how to go on, the attempts at cells with several."""
    counts: dict[CellStatus, int] = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    console.print(f"sweep {name}: " + ", ".join(f"{n} {s.value}" for s, n in counts.items()), highlight=False)
    _print_cells(console, cells, states)
    _print_failures(console, name, cells, states)
    _print_histories(console, cells, states)


def print_outcome(
    console: Console, name: str, cells: list[Cell], states: dict[str, CellState], *, started_any: bool
) -> None:
    """The end of a sweep: table, failures with the lines that run them again, where to look further."""
    if not started_any:
        console.print("nothing to run: every cell has ended", highlight=False)
    console.print()
    _print_cells(console, cells, states)
    if _print_failures(console, name, cells, states):
        console.print(f"all failed ones: make resubmit ARGS='name={name}'", highlight=False)
    console.print(f"report:          {results.sweep_directory(name) / 'report.html'}", highlight=False)
    console.print(f"MLflow UI:       make ui ARGS='name={name}'", highlight=False)


def _print_failures(console: Console, name: str, cells: list[Cell], states: dict[str, CellState]) -> bool:
    """Each way to fail once, with its cells: what, where, what next, the logs. Says whether there is any."""
    groups: defaultdict[tuple[str, FailureKind, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        failure = last_failure(states[cell.key])
        if states[cell.key].status is CellStatus.FAILED and failure is not None:
            groups[failure.stage, failure.kind, failure.message].append(cell)
    for (stage, kind, message), failed in groups.items():
        count = f"{len(failed)} cells" if len(failed) > 1 else "1 cell"
        console.print()
        console.print(Text.assemble(("FAILED  ", "red"), (f"{kind} in {stage}", "bold"), f", {count}"))
        console.print(f"  {message}", markup=False, highlight=False)
        named = _named(console, failed)
        width = max(len(cell.label) for cell in named)
        for cell in named:
            attempt = history(states[cell.key])[-1]
            told = f"attempt {attempt.number} {attempt.when}  {attempt.log}"
            console.print(Text.assemble(f"    {cell.label:<{width}}  ", (told, "dim")))
        _print_unnamed(console, failed, "    ")
        console.print(f"  next:  {NEXT_STEPS[kind]}; then", markup=False, highlight=False)
        console.print(f"         {resubmit_command(name, failed, kind)}", markup=False, highlight=False)
    if groups:
        console.print()
    return bool(groups)


def _print_histories(console: Console, cells: list[Cell], states: dict[str, CellState]) -> None:
    retried = [cell for cell in cells if len(states[cell.key].attempts) > 1]
    for cell in _named(console, retried):
        tries = history(states[cell.key])
        console.print(Text.assemble((cell.label, "bold"), f": {len(tries)} attempts"))
        for attempt in tries:
            first_line = attempt.message.partition("\n")[0]
            console.print(
                Text.assemble(f"  {attempt.number}  {attempt.words}", (f"  {first_line}" if first_line else "", "dim"))
            )
    _print_unnamed(console, retried, "")


def _named(console: Console, cells: list[Cell]) -> list[Cell]:
    """Those of a list that are named one by one."""
    return cells if shows_every_row(console, len(cells)) else cells[:MAX_NAMED]


def _print_unnamed(console: Console, cells: list[Cell], indent: str) -> None:
    if more := len(cells) - len(_named(console, cells)):
        console.print(f"{indent}and {more} more; all are named when this goes into a file", highlight=False)


def _print_cells(console: Console, cells: list[Cell], states: dict[str, CellState]) -> None:
    """A line per cell; on a terminal, one per model and method where there would be too many to read."""
    for name, words in effort(cells).items():
        console.print(f"{name}: {words}", markup=False, highlight=False)
    colours = {status.value: colour for status, colour in COLOURS.items()}
    if shows_every_row(console, len(cells)):
        names = _metric_names(states)
        rows = [[cell.label, *_values(cell, states[cell.key], names)] for cell in cells]
        header = ["cell", "status", *names, "quantize s", "evaluate s"]
        print_listing(console, header, rows, num_words=2, colours=colours)
        return
    groups: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for cell in cells:
        groups[cell.model.name, cell.config.method.name][states[cell.key].status.value] += 1
    counted = [[*group, ", ".join(f"{n} {status}" for status, n in counts.items())] for group, counts in groups.items()]
    print_listing(console, ["model", "method", "cells"], counted, num_words=3, colours=colours)
    console.print(
        f"{len(cells)} cells by model and method; each has a line of its own in cells.csv, and here when this goes "
        "into a file",
        highlight=False,
    )


def _metric_names(states: dict[str, CellState]) -> list[str]:
    found: dict[str, None] = {}
    for state in states.values():
        if state.last and state.last.result and state.last.result.evaluate:
            found |= dict.fromkeys(m.name for m in state.last.result.evaluate.metrics)
    return list(found)[:MAX_METRICS]


def _values(cell: Cell, state: CellState, names: list[str]) -> list[str]:
    status = state.status.value
    if cell.support is not None:
        return [status, cell.support_reason]
    result = state.last.result if state.last else None
    if result is None or result.evaluate is None:
        return [status, ""]
    values = {m.name: f"{m.value:.4g}" if m.unit != "1" else f"{m.value:.2f}" for m in result.evaluate.metrics}
    quantize = f"{result.quantize.seconds:.1f}" if result.quantize else "cached"
    return [status, *(values.get(n, "") for n in names), quantize, f"{stage_seconds(result.evaluate):.1f}"]
