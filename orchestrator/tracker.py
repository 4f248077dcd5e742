"""MLflow, as a view of the storage: the only module that imports mlflow.

A sweep is a parent run, each attempt at a cell a child run. Everything shown is read from attempts/ and checkpoints/,
so `sync` can rebuild it at any time; what is already there is found by its tags and left alone.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from conf.schema import TrackingConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.storage import Attempt, CellState, Storage
from workers.api import Manifest
from workers.errors import PrerequisiteError

logging.getLogger("mlflow").setLevel(logging.WARNING)  # table migrations are no news to a user

TAG_SWEEP = "ptqbench.sweep"
TAG_ATTEMPT = "ptqbench.attempt"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # runs with metrics, not chats with agents
RUN_STATUS = {CellStatus.SUCCEEDED: "FINISHED", CellStatus.FAILED: "FAILED", CellStatus.CANCELLED: "KILLED"}


def tracking_uri(conf: TrackingConf, results: Path) -> str:
    """Where MLflow keeps its tables: the given server, or an SQLite file under results/mlflow."""
    return conf.uri or f"sqlite:///{(results / 'mlflow' / 'mlflow.db').resolve()}"


class Tracker:
    """One sweep in MLflow. Raises PrerequisiteError when MLflow cannot be reached."""

    def __init__(self, conf: TrackingConf, results: Path, sweep: str, tags: dict[str, str]) -> None:
        (results / "mlflow").mkdir(parents=True, exist_ok=True)
        uri = tracking_uri(conf, results)
        self._client = MlflowClient(uri)
        self._conf = conf
        try:
            self._experiment = self._find_or_create_experiment(conf, results)
            self._parent = self._find_or_create_parent(sweep, tags)
            self._runs = self._existing_runs()
        except (MlflowException, OSError) as error:
            raise PrerequisiteError(
                f"MLflow does not answer at {uri}: {str(error).splitlines()[0]}; start it "
                "(mlflow server --host 127.0.0.1), or track locally: tracking=local"
            ) from error
        self._sweep = sweep

    def run_id(self, attempt: Attempt) -> str | None:
        """The child run of an attempt, or null while it has none."""
        return self._runs.get(attempt.name)

    def log_attempts(self, cells: Iterable[Cell], states: dict[str, CellState], storage: Storage) -> None:
        """Show every ended attempt of these cells that has no run yet."""
        for cell in cells:
            for attempt in states[cell.key].attempts:
                if attempt.result is not None and attempt.name not in self._runs:
                    self._log(cell, attempt, storage)

    def close(self, *, succeeded: bool) -> None:
        """End the sweep's run."""
        self._client.set_terminated(self._parent, "FINISHED" if succeeded else "FAILED")

    def log_tables(self, directory: Path) -> None:
        """Attach the sweep's tables and report to its run."""
        for name in ("cells.csv", "report.html", "report.md"):
            if (directory / name).exists():
                self._client.log_artifact(self._parent, str(directory / name))

    def _find_or_create_experiment(self, conf: TrackingConf, results: Path) -> str:
        found = self._client.get_experiment_by_name(conf.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None if conf.uri else (results / "mlflow" / "artifacts").resolve().as_uri()
        return str(
            self._client.create_experiment(conf.experiment, artifact_location=location, tags=dict(EXPERIMENT_TAGS))
        )

    def _find_or_create_parent(self, sweep: str, tags: dict[str, str]) -> str:
        found = self._client.search_runs(
            [self._experiment], f"tags.`{TAG_SWEEP}` = '{sweep}' and tags.`ptqbench.kind` = 'sweep'", max_results=1
        )
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        run = self._client.create_run(
            self._experiment, run_name=sweep, tags={TAG_SWEEP: sweep, "ptqbench.kind": "sweep", **tags, **_note(sweep)}
        )
        return str(run.info.run_id)

    def _existing_runs(self) -> dict[str, str]:
        """Attempt -> run id of the children of this sweep."""
        runs: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.mlflow.parentRunId = '{self._parent}'", max_results=1000, page_token=token
            )
            runs |= {run.data.tags[TAG_ATTEMPT]: run.info.run_id for run in page if run.info.status != "RUNNING"}
            token = page.token
            if not token:
                return runs

    def _log(self, cell: Cell, attempt: Attempt, storage: Storage) -> None:
        assert attempt.result is not None
        started = int((attempt.directory / "cell.json").stat().st_mtime * 1000)
        ended = int((attempt.directory / "result.json").stat().st_mtime * 1000)
        run = self._client.create_run(
            self._experiment, start_time=started, run_name=cell.label, tags=self._tags(cell, attempt)
        )
        run_id = run.info.run_id
        manifest = storage.manifest(cell.quantize_key)
        metrics = [MlflowMetric(k, v, ended, 0) for k, v in _metrics(attempt, manifest).items()]
        params = [Param(k, v) for k, v in _params(cell).items()]
        self._client.log_batch(run_id, metrics=metrics, params=params, tags=_failure_tags(attempt))
        self._log_artifacts(run_id, attempt, manifest)
        if self._conf.upload_checkpoints and manifest is not None and manifest.files:
            self._client.log_artifacts(run_id, str(storage.checkpoint(cell.quantize_key)), "checkpoint")
        self._client.set_terminated(run_id, RUN_STATUS[CellStatus(attempt.result.status)], end_time=ended)
        self._runs[attempt.name] = run_id

    def _tags(self, cell: Cell, attempt: Attempt) -> dict[str, str]:
        return {
            "mlflow.parentRunId": self._parent,
            TAG_SWEEP: self._sweep,
            TAG_ATTEMPT: attempt.name,
            "mlflow.source.name": "ptqbench sweep",
            "mlflow.source.type": "LOCAL",
            "ptqbench.kind": "attempt",
            "ptqbench.cell_key": cell.key,
            "ptqbench.quantize_key": cell.quantize_key,
            "ptqbench.attempt_number": str(attempt.number),
        }

    def _log_artifacts(self, run_id: str, attempt: Attempt, manifest: Manifest | None) -> None:
        for name in ("cell.json", "result.json", "log.txt"):
            if (attempt.directory / name).exists():
                self._client.log_artifact(run_id, str(attempt.directory / name))
        assert attempt.result is not None
        if attempt.result.failure is not None and attempt.result.failure.traceback:
            self._client.log_text(run_id, attempt.result.failure.traceback, "traceback.txt")
        if manifest is not None:
            table = pd.DataFrame([vars(report) for report in manifest.layer_reports])
            if len(table):
                self._client.log_table(run_id, table, "layers.json")
            summary = {k: v for k, v in vars(manifest).items() if k not in ("canary", "layer_reports")}
            self._client.log_text(run_id, json.dumps(summary, indent=1), "manifest.json")


def _note(sweep: str) -> dict[str, str]:
    """What the page of the sweep's run says first."""
    text = (
        f"Sweep **{sweep}**: one child run per attempt at a cell, named by the cell's label. Compare the children by "
        "`held_out.perplexity` or whatever the suite measured; `report.html` under Artifacts has the tables and plots."
    )
    return {"mlflow.note.content": text, "mlflow.source.name": "ptqbench sweep", "mlflow.source.type": "LOCAL"}


def _params(cell: Cell) -> dict[str, str]:
    config = cell.config
    slots = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")
    return {
        "model": cell.model.name,
        "model_fingerprint": cell.model.fingerprint,
        "architecture": cell.model.architecture,
        "method": config.method.name,
        "category": config.method.category,
        "bits": str(config.scheme.bits),
        "group_size": str(config.scheme.group_size),
        "seed": str(config.seed),
        "lane": config.lane.name,
        "calibration": config.calibration.name,
        "suite": config.suite.name,
        "engine": cell.engine.name,
        "engine_reason": cell.engine.reason,
        "dtype": cell.engine.dtype,
        "device": config.numerics.device,
        **{slot: _spoken(getattr(config.method, slot)) for slot in slots},
    }


def _spoken(stage: Any) -> str:
    fields = ", ".join(f"{k}={v}" for k, v in vars(stage).items())
    return f"{type(stage).__name__}({fields})"


def _metrics(attempt: Attempt, manifest: Manifest | None) -> dict[str, float]:
    assert attempt.result is not None
    found: dict[str, float] = {}
    if manifest is not None:
        found |= {"bits_per_weight": manifest.bits_per_weight, "checkpoint_bytes": float(manifest.checkpoint_bytes)}
    if attempt.result.quantize is not None:
        found |= {
            "quantize_seconds": attempt.result.quantize.seconds,
            "quantize_peak_memory_gib": attempt.result.quantize.peak_memory_gib,
        }
    if attempt.result.evaluate is not None:
        for metric in attempt.result.evaluate.metrics:
            found[metric.name] = metric.value
            if metric.stderr is not None:
                found[f"{metric.name}_stderr"] = metric.stderr
        found |= {f"seconds.{name}": value for name, value in attempt.result.evaluate.seconds.items()}
    return found


def _failure_tags(attempt: Attempt) -> list[RunTag]:
    assert attempt.result is not None
    failure = attempt.result.failure
    if failure is None:
        return []
    return [
        RunTag("ptqbench.failure_kind", failure.kind.value),
        RunTag("ptqbench.failure_stage", failure.stage),
        RunTag("ptqbench.failure_message", failure.message[:5000]),
    ]
