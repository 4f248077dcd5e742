"""MLflow, as a view of the storage: the only module that imports mlflow.

A sweep is a parent run, each attempt at a cell a child run. Everything shown is read from attempts/ and checkpoints/,
so `sync` can rebuild it at any time; what is already there is found by its tags and left alone.
"""

import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException

from conf.schema import TrackingConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.storage import Attempt, CellState, Storage
from orchestrator.table import degradation, stage_seconds
from workers.api import Manifest
from workers.errors import PrerequisiteError

logging.getLogger("mlflow").setLevel(logging.WARNING)  # table migrations are no news to a user

TAG_SWEEP = "ptqbench.sweep"
TAG_ATTEMPT = "ptqbench.attempt"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # runs with metrics, not chats with agents
MAX_MESSAGE = 4000  # characters; a tag holds 8000
# A server that does not answer is given up after a minute, not after MLflow's own ten.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
RUN_STATUS = {CellStatus.SUCCEEDED: "FINISHED", CellStatus.FAILED: "FAILED", CellStatus.CANCELLED: "KILLED"}


def tracking_uri(conf: TrackingConf, results: Path) -> str:
    """Where MLflow keeps its tables: the given server, or an SQLite file under results/mlflow."""
    return conf.uri or f"sqlite:///{(results / 'mlflow' / 'mlflow.db').resolve()}"


def runs_page(conf: TrackingConf, results: Path) -> str:
    """Where MLflow's UI lists the runs of the experiment, below its root; empty before there is one."""
    found = MlflowClient(tracking_uri(conf, results)).get_experiment_by_name(conf.experiment)
    return f"/#/experiments/{found.experiment_id}/runs" if found is not None else ""


class Tracker:
    """One sweep in MLflow. problem: why not everything is shown, or null."""

    def __init__(self, conf: TrackingConf, results: Path, sweep: str, tags: dict[str, str]) -> None:
        """Raises PrerequisiteError when MLflow cannot be reached. tags: of the sweep's run."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
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
        self.problem: str | None = None

    def run_id(self, attempt: Attempt) -> str | None:
        """The child run of an attempt, or null while it has none."""
        return self._runs.get(attempt.name)

    def log_attempts(self, cells: Sequence[Cell], states: dict[str, CellState], storage: Storage) -> None:
        """Show every ended attempt of these cells that has no run yet, oldest first, and the counts of the sweep."""
        if self.problem is not None:  # asking again would cost the sweep a time-out for each attempt
            return
        ended = [(c, a) for c in cells for a in states[c.key].attempts if a.result is not None]
        new = [(cell, attempt) for cell, attempt in ended if attempt.name not in self._runs]
        with self._answering():
            for cell, attempt in sorted(new, key=lambda pair: _ended_at(pair[1])):
                self._log(cell, attempt, storage)
            now = int(time.time() * 1000)
            counts = [MlflowMetric(name, count, now, 0) for name, count in _counts(states).items()]
            self._client.log_batch(self._parent, metrics=counts)

    def close(self, status: CellStatus, tables: Path) -> None:
        """End the sweep's run, with the tables and the report in `tables` attached."""
        with self._answering():
            for name in ("cells.csv", "report.html", "report.md"):
                self._client.log_artifact(self._parent, str(tables / name))
            self._client.set_terminated(self._parent, RUN_STATUS[status])

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """MLflow is a view: when it fails in the middle of a sweep, the sweep goes on, and `problem` says why."""
        try:
            yield
        except (MlflowException, OSError) as error:
            self.problem = f"MLflow has stopped answering: {str(error).splitlines()[0]}"

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
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
            return run_id
        run = self._client.create_run(
            self._experiment, run_name=sweep, tags={TAG_SWEEP: sweep, "ptqbench.kind": "sweep", **tags, **_note(sweep)}
        )
        return str(run.info.run_id)

    def _existing_runs(self) -> dict[str, str]:
        """Attempt -> run id of the children of this sweep. A child that was left half written is deleted."""
        children: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.mlflow.parentRunId = '{self._parent}'", max_results=1000, page_token=token
            )
            children += page
            token = page.token
            if not token:
                break
        for child in children:
            if child.info.status == "RUNNING":
                self._client.delete_run(child.info.run_id)
        return {c.data.tags[TAG_ATTEMPT]: c.info.run_id for c in children if c.info.status != "RUNNING"}

    def _log(self, cell: Cell, attempt: Attempt, storage: Storage) -> None:
        assert attempt.result is not None
        started, ended = int((attempt.directory / "cell.json").stat().st_mtime * 1000), _ended_at(attempt)
        run = self._client.create_run(
            self._experiment, start_time=started, run_name=cell.label, tags=self._tags(cell, attempt)
        )
        run_id = run.info.run_id
        manifest = storage.manifest(cell.quantize_key)
        metrics = [MlflowMetric(k, v, ended, 0) for k, v in _metrics(attempt, manifest).items()]
        params = [Param(k, v) for k, v in _params(cell).items()]
        tags = [RunTag(k, v) for k, v in (_failure_tags(attempt) | _degradation_tags(manifest)).items()]
        self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
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
        f"Sweep **{sweep}**: one child run per attempt at a cell, named by the cell's label (model, method, bits, "
        "group size). Metrics are named `<task>.<metric>`; `report.html` and `cells.csv` under Artifacts compare them."
    )
    return {"mlflow.note.content": text, "mlflow.source.name": "ptqbench sweep", "mlflow.source.type": "LOCAL"}


def _ended_at(attempt: Attempt) -> int:
    """Milliseconds since 1970."""
    return int((attempt.directory / "result.json").stat().st_mtime * 1000)


def _counts(states: Mapping[str, CellState]) -> dict[str, int]:
    """How far the sweep is."""
    statuses = Counter(state.status for state in states.values())
    return {
        "num_cells": len(states),
        "num_succeeded": statuses[CellStatus.SUCCEEDED],
        "num_failed": statuses[CellStatus.FAILED],
    }


def _params(cell: Cell) -> dict[str, str]:
    config = cell.config
    slots = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")
    return {
        "model": cell.model.name,
        "method": config.method.name,
        "bits": str(config.scheme.bits),
        "group_size": str(config.scheme.group_size or "row"),
        "seed": str(config.seed),
        "lane": config.lane.name,
        "calibration": config.calibration.name,
        "suite": config.suite.name,
        **{slot: _spoken(getattr(config.method, slot)) for slot in slots},
        "scheme": _spoken(config.scheme),
        "engine": cell.engine.name,
        "engine_reason": cell.engine.reason,
        "weight_format": cell.engine.weight_format,
        "dtype": cell.engine.dtype,
        "device": config.numerics.device,
        "category": config.method.category,
        "architecture": cell.model.architecture,
        "model_repo": cell.model.repo,
        "model_fingerprint": cell.model.fingerprint,
    }


def _spoken(stage: Any) -> str:
    if type(stage).__name__.startswith("No"):
        return "none"
    fields = ", ".join(f"{k}={v}" for k, v in vars(stage).items())
    return f"{type(stage).__name__}({fields})"


def _metrics(attempt: Attempt, manifest: Manifest | None) -> dict[str, float]:
    """What the suite measured first; then size, then cost."""
    assert attempt.result is not None
    quantize, evaluate = attempt.result.quantize, attempt.result.evaluate
    found: dict[str, float] = {}
    if evaluate is not None:
        for metric in evaluate.metrics:
            found[metric.name] = metric.value
            if metric.stderr is not None:
                found[f"{metric.name}_stderr"] = metric.stderr
    if manifest is not None:
        found |= {"bits_per_weight": manifest.bits_per_weight, "checkpoint_bytes": float(manifest.checkpoint_bytes)}
    if quantize is not None:
        found |= {"quantize_seconds": quantize.seconds, "quantize_peak_memory_gib": quantize.peak_memory_gib}
    if evaluate is not None:
        found |= {
            "evaluate_seconds": stage_seconds(evaluate),
            "evaluate_peak_memory_gib": evaluate.peak_memory_gib,
            "canary_difference": evaluate.canary_difference,
            **{f"evaluate_seconds.{step}": value for step, value in evaluate.seconds.items()},
        }
    return found


def _failure_tags(attempt: Attempt) -> dict[str, str]:
    assert attempt.result is not None
    failure = attempt.result.failure
    if failure is None:
        return {}
    message = failure.message[:MAX_MESSAGE]
    return {
        "mlflow.note.content": f"**{failure.kind}** in {failure.stage}:\n\n    {message}\n\nMore under Artifacts.",
        "ptqbench.failure_kind": failure.kind.value,
        "ptqbench.failure_stage": failure.stage,
        "ptqbench.failure_message": message,
    }


def _degradation_tags(manifest: Manifest | None) -> dict[str, str]:
    text = degradation(manifest) if manifest is not None else ""
    return {"ptqbench.degraded": text[:MAX_MESSAGE]} if text else {}
