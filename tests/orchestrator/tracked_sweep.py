"""A sweep of hand-made cells and attempts, shown in MLflow; and what MLflow then shows."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from conf.schema import TrackingConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.storage import Storage, end_attempt, lost
from orchestrator.tracker import Tracker, tracking_uri
from tests.orchestrator.hand_made import make_cell, with_bits
from workers.api import (
    AttemptResult,
    Canary,
    EvaluateResult,
    Failure,
    FailureKind,
    LayerReport,
    Manifest,
    Metric,
    QuantizeResult,
    to_json,
)
from workers.files import create

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

CHANGING = ("ptqbench.started", "mlflow.user", "mlflow.parentRunId")
LOCAL = TrackingConf(name="local")
NUMERICAL = Failure("quantize", FailureKind.NUMERICAL, "layers.3: Hessian\nnot finite", traceback="Traceback ...")
REPORT = LayerReport(0, "up_proj", "GptqRound", 3, None, 3.5, 64, 8, 0.01, 0, 0.5, 0.1, False, None, 1.0)


class Sweep:
    """A sweep of hand-made cells under one results directory; shown in MLflow's local tables unless on a server."""

    def __init__(self, results: Path, name: str = "mine", conf: TrackingConf = LOCAL) -> None:
        self.results, self.name, self.conf = results, name, conf
        self.storage = Storage(results / f"storage-{name}")
        self.cells: list[Cell] = []
        self.tables = results / name
        self.tables.mkdir(parents=True, exist_ok=True)
        for table in ("cells.csv", "report.html", "report.md"):
            (self.tables / table).write_text(table)

    def run(self) -> None:
        """One cell succeeds, one fails, one is lost once and then succeeds; each is shown as it ends."""
        good, bad, retried = self.cells = [make_cell(with_bits(bits), label=f"w{bits}") for bits in (2, 3, 4)]
        tracker = self.tracker()
        ends: list[Callable[[], None]] = [
            lambda: self.fail(retried, lost("quantize", "the worker process died")),
            lambda: self.succeed(good),
            lambda: self.fail(bad, NUMERICAL),
            lambda: self.succeed(retried),
        ]
        for end in ends:
            end()
            self.show(tracker)
        assert tracker.problem is None
        tracker.close(CellStatus.FAILED, self.tables)

    def tracker(self, *, restore: bool = False) -> Tracker:
        return Tracker(self.conf, self.results, self.storage, self.name, {"ptqbench.started": "now"}, restore=restore)

    def show(self, tracker: Tracker) -> None:
        tracker.log_attempts(self.cells, self.storage.states(self.cells))

    def sync(self) -> Tracker:
        tracker = self.tracker(restore=True)
        self.show(tracker)
        assert tracker.problem is None
        tracker.close(CellStatus.FAILED, self.tables)
        return tracker

    def view(self) -> dict[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as download:
            return view(self.client, Path(download))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri(self.conf, self.results))

    @property
    def experiment(self) -> str:
        found = self.client.get_experiment_by_name("ptq-bench")
        assert found is not None
        return str(found.experiment_id)

    def runs(self, kind: str = "attempt") -> list[Any]:
        """Newest first."""
        return list(self.client.search_runs([self.experiment], f"tags.`ptqbench.kind` = '{kind}'"))

    def fail(self, cell: Cell, failure: Failure) -> None:
        directory = self.storage.open_attempt(cell, self.storage.states([cell])[cell.key].next_number).directory
        (directory / "log.txt").write_text("what the worker said\n")
        end_attempt(directory, cell, CellStatus.FAILED, failure)

    def succeed(self, cell: Cell) -> None:
        directory = self.storage.open_attempt(cell, self.storage.states([cell])[cell.key].next_number).directory
        manifest = Manifest(
            cell.quantize_key, "s", "packed", "h", 8, 3.5, 99, Canary([], [], []), [REPORT], {}, 2.0, 0.5, {}
        )
        self.storage.checkpoint(cell.quantize_key).mkdir(exist_ok=True)
        (self.storage.checkpoint(cell.quantize_key) / "manifest.json").write_text(to_json(manifest))
        (directory / "log.txt").write_text("done\n")
        evaluated = EvaluateResult([Metric("held_out.perplexity", 7.5, 0.25, 8, "1")], "v", "fresh", 0.0, {"load": 1.0})
        quantized = QuantizeResult(cell.quantize_key, False, 2.0, 0.5, 0.1)
        result = AttemptResult(cell.evaluate_key, cell.quantize_key, "SUCCEEDED", None, quantized, evaluated)
        create(directory / "result.json", to_json(result))


def view(mlflow: MlflowClient, download: Path) -> dict[str, dict[str, Any]]:
    """Name, status, params, metrics, tags and hashed artifacts of the run of every sweep and of every attempt."""
    experiment = mlflow.get_experiment_by_name("ptq-bench")
    assert experiment is not None
    runs = mlflow.search_runs([experiment.experiment_id], max_results=1000)
    parents = {run.info.run_id: _name(run) for run in runs if run.data.tags["ptqbench.kind"] == "sweep"}
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        name = _name(run)
        while name in found:
            name += " again"
        found[name] = _shown(mlflow, run, parents, download / run.info.run_id)
    return found


def _name(run: Run) -> str:
    tags = run.data.tags
    return str(f"{tags['ptqbench.sweep']} {tags.get('ptqbench.attempt', '')}")


def _shown(mlflow: MlflowClient, run: Run, parents: dict[str, str], download: Path) -> dict[str, Any]:
    download.mkdir()
    if mlflow.list_artifacts(run.info.run_id):
        mlflow.download_artifacts(run.info.run_id, "", str(download))
    files = [path for path in sorted(download.rglob("*")) if path.is_file()]
    parent = run.data.tags.get("mlflow.parentRunId")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "started": run.info.start_time if parent else None,
        "ended": run.info.end_time if parent else None,
        "parent": parents.get(parent, "gone") if parent else None,
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": {name: value for name, value in run.data.tags.items() if name not in CHANGING},
        "artifacts": {
            path.relative_to(download).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        },
    }
