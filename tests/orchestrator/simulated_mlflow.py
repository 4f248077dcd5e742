"""An MLflow server in memory, as far as orchestrator/tracker.py talks to one, that can be away at any call."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlflow.exceptions import MlflowException

T = TypeVar("T")


@dataclass
class _Info:
    run_id: str
    status: str = "RUNNING"


@dataclass
class _Data:
    tags: dict[str, str]


@dataclass
class SimulatedRun:
    """A run as MLflow hands it out."""

    info: _Info
    data: _Data
    num_metrics: int = 0
    artifacts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Experiment:
    experiment_id: str = "1"
    lifecycle_stage: str = "active"
    artifact_location: str = ""


class _Page(list[SimulatedRun]):
    token: str | None = None


class SimulatedMlflow:
    """Stands for MlflowClient. answers: asked before each call and again after it; false when the server is away.

    So a call may have been carried out although its caller hears that the server does not answer.
    """

    def __init__(self, answers: Callable[[], bool]) -> None:
        self._answers = answers
        self._numbers = itertools.count(1)
        self._runs: dict[str, SimulatedRun] = {}

    def __call__(self, uri: str) -> "SimulatedMlflow":
        return self

    def runs_with(self, tag: str) -> list[tuple[str, str]]:
        """The tag's value and the status of each run that has this tag."""
        return [(run.data.tags[tag], run.info.status) for run in self._runs.values() if tag in run.data.tags]

    # --- the client --------------------------------------------------------------------------------------------------

    def get_experiment_by_name(self, name: str) -> _Experiment:
        return self._answered(_Experiment())

    def search_runs(self, experiments: list[str], query: str, max_results: int, page_token: str | None) -> _Page:
        wanted = dict(re.findall(r"tags\.`([^`]+)` = '([^']*)'", query))
        self._answered(None)
        return _Page(run for run in reversed(self._runs.values()) if wanted.items() <= run.data.tags.items())

    def create_run(self, experiment: str, run_name: str, tags: Mapping[str, str], **times: Any) -> SimulatedRun:
        self._answered(None)
        run = SimulatedRun(_Info(f"run-{next(self._numbers)}"), _Data(dict(tags)))
        self._runs[run.info.run_id] = run
        return self._answered(run)

    def update_run(self, run_id: str, status: str) -> None:
        self._answered(None)
        self._runs[run_id].info.status = status
        self._answered(None)

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Any = (), tags: Sequence[Any] = ()) -> None:
        self._answered(None)
        self._runs[run_id].num_metrics += len(metrics)
        self._runs[run_id].data.tags.update({tag.key: tag.value for tag in tags})
        self._answered(None)

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self._answered(None)
        self._runs[run_id].data.tags[name] = value
        self._answered(None)

    def log_artifact(self, run_id: str, path: str, directory: str | None = None) -> None:
        self._answered(None)
        self._runs[run_id].artifacts.append(path)
        self._answered(None)

    def list_artifacts(self, run_id: str, directory: str | None) -> list[Any]:
        return self._answered([])

    def set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self._answered(None)
        self._runs[run_id].info.status = status
        self._answered(None)

    def delete_run(self, run_id: str) -> None:
        self._answered(None)
        del self._runs[run_id]
        self._answered(None)

    def _answered(self, value: T) -> T:
        if not self._answers():
            raise MlflowException("connection refused")
        return value
