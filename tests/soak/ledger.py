"""What became of a sweep's cells, from the three places that say so: the storage, cells.csv and MLflow."""

import csv
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient

from tests.soak.sweep import SweepUnderTest
from workers.api import AttemptResult, from_json

SUCCEEDED = "SUCCEEDED"
LATE_SECONDS = 2.0  # a worker that has written its result still closes its log
Metrics = dict[str, float]


@dataclass
class Ledger:
    """Of one sweep. ends: how attempts ended, counted. metrics: cell key -> what cells.csv has. problems: in words."""

    num_attempts: int = 0
    succeeded: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    running: int = 0
    metrics: dict[str, Metrics] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read(sweep: SweepUnderTest, tracking_uri: str) -> Ledger:
    """Read, and hold the three against each other."""
    ledger = Ledger()
    scored = _read_attempts(sweep.storage / "attempts", ledger)
    _read_table(sweep.directory / "results" / sweep.name / "cells.csv", ledger, scored)
    _read_mlflow(tracking_uri, sweep, ledger, scored)
    return ledger


def compare(ledger: Ledger, undisturbed: Ledger) -> None:
    """Fill in what was lost or has come out differently."""
    ledger.lost = len(undisturbed.metrics.keys() - ledger.succeeded)
    for key, expected in undisturbed.metrics.items():
        if ledger.metrics.get(key) != expected:
            found = ledger.metrics.get(key)
            ledger.problems.append(f"{key[:16]}: {expected} undisturbed, {found} here")


def _read_attempts(directory: Path, ledger: Ledger) -> dict[str, Metrics]:
    """Fill in attempts, ends and doubled; returns the metrics of each attempt that succeeded, by its name."""
    ends: dict[str, list[str]] = {}
    scored: dict[str, Metrics] = {}
    for attempt in sorted(path for path in directory.iterdir() if not path.name.startswith(".")):
        written = attempt / "result.json"
        result = from_json(AttemptResult, written.read_text()) if written.exists() else None
        end = "RUNNING" if result is None else str(result.failure.kind) if result.failure else result.status
        ends.setdefault(json.loads((attempt / "cell.json").read_text())["evaluate_key"], []).append(end)
        if result is None:
            ledger.running += 1
            ledger.problems.append(f"attempt {attempt.name} is still open")
            continue
        if result.evaluate is not None:
            scored[attempt.name] = {metric.name: metric.value for metric in result.evaluate.metrics}
        late = [p.name for p in attempt.iterdir() if p.stat().st_mtime > written.stat().st_mtime + LATE_SECONDS]
        if late:
            ledger.problems.append(f"attempt {attempt.name} had ended ({end}) when {', '.join(late)} was written to")
    ledger.num_attempts = sum(map(len, ends.values()))
    ledger.ends = Counter(end for cell in ends.values() for end in cell)
    ledger.succeeded = {key for key, cell in ends.items() if SUCCEEDED in cell}
    ledger.doubled = sum(cell.index(SUCCEEDED) < len(cell) - 1 for cell in ends.values() if SUCCEEDED in cell)
    ledger.problems += [f"{key[:16]}: {' -> '.join(cell)}" for key, cell in ends.items() if _is_wrong(cell)]
    return scored


def _is_wrong(ends: list[str]) -> bool:
    return ends.count(SUCCEEDED) != 1 or ends[-1] != SUCCEEDED


def _read_table(path: Path, ledger: Ledger, scored: dict[str, Metrics]) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    statuses = Counter(row["status"] for row in rows)
    if set(statuses) != {SUCCEEDED}:
        ledger.problems.append(f"cells.csv has {dict(statuses)}")
    for row in rows:
        found = {
            name.removeprefix("metric."): float(row[name]) for name in row if name.startswith("metric.") and row[name]
        }
        ledger.metrics[row["cell_key"]] = found
        attempt = f"{row['cell_key'][:16]}-{int(row['attempt'] or 0):03d}"
        if not scored.get(attempt, {"": 0.0}).items() <= found.items():  # errors of the mean stand beside them
            ledger.problems.append(f"cells.csv and {attempt} disagree: {found}, {scored.get(attempt)}")


def _read_mlflow(uri: str, sweep: SweepUnderTest, ledger: Ledger, scored: dict[str, Metrics]) -> None:
    """A child run for every attempt, once, ended; the parent ended well; the metrics those of the storage."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ptq-bench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`ptqbench.sweep` = '{sweep.name}'", max_results=1000)
    open_runs = [run for run in runs if run.info.status == "RUNNING"]
    ledger.running += len(open_runs)
    ledger.problems += [f"MLflow run {run.info.run_name} is RUNNING" for run in open_runs]
    parents = [run.info.status for run in runs if run.data.tags["ptqbench.kind"] == "sweep"]
    if parents != ["FINISHED"]:
        ledger.problems.append(f"the sweep's runs in MLflow: {parents}")
    children = [run for run in runs if run.data.tags["ptqbench.kind"] == "attempt"]
    names = [run.data.tags["ptqbench.attempt"] for run in children]
    if len(names) != len(set(names)) or len(names) != ledger.num_attempts:
        ledger.problems.append(f"MLflow has {len(names)} runs for {ledger.num_attempts} attempts")
    for name, run in zip(names, children, strict=True):
        shown = {metric: value for metric, value in run.data.metrics.items() if metric in scored.get(name, {})}
        if shown != scored.get(name, {}):
            ledger.problems.append(f"MLflow and {name} disagree: {shown}, {scored.get(name)}")
