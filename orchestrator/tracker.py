"""MLflow, as a view of the storage: the only module that imports mlflow.

A sweep is a parent run, each attempt at a cell a child run; `run_page.py` says what stands on them. Everything shown is
read from the storage, so `sync` can rebuild it at any time. Runs are found by their tags (sweep, storage, attempt). A
run is whole when its status has been set, which is done last; one that is not is deleted and made again.
"""

import contextlib
import logging
import math
import os
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Param, Run, RunTag
from mlflow.entities import Metric as MlflowMetric
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError

from conf.schema import TrackingConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.history import ended_at
from orchestrator.run_page import (
    NOTE,
    TAG_ATTEMPT,
    TAG_KIND,
    TAG_STORAGE,
    TAG_SWEEP,
    RunPage,
    attempt_page,
    sweep_metrics,
    sweep_note,
)
from orchestrator.storage import Attempt, CellState, Storage
from workers.errors import PrerequisiteError

logging.getLogger("mlflow").setLevel(logging.ERROR)  # table migrations and retries are no news to a user
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `problem` says what it would, in one line

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # runs with metrics, not chats with agents
PARENT = "mlflow.parentRunId"
TABLES = ("cells.csv", "report.html", "report.md")
# A server that does not answer is given up after a minute, not after MLflow's own ten; and a run's address is not
# printed at its end, in the midst of the live line.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
MAX_BATCH = 900  # metrics in one call, beside the parameters
RUN_STATUS = {CellStatus.SUCCEEDED: "FINISHED", CellStatus.FAILED: "FAILED", CellStatus.CANCELLED: "KILLED"}
UNREACHABLE = (MlflowException, OSError, SQLAlchemyError)


def tracking_uri(conf: TrackingConf, results: Path) -> str:
    """Where MLflow keeps its tables: the given server, or an SQLite file under results/mlflow."""
    return conf.uri or f"sqlite:///{_database(results)}"


def runs_page(conf: TrackingConf, results: Path) -> str:
    """Where MLflow's UI lists the runs of the experiment, below its root; empty before there is one."""
    if conf.uri is None:
        create_database(_database(results))
    found = MlflowClient(tracking_uri(conf, results)).get_experiment_by_name(conf.experiment)
    return f"/#/experiments/{found.experiment_id}/runs" if found is not None else ""


def create_database(path: Path) -> None:
    """MLflow's empty tables in an SQLite file, unless there is one.

    MLflow makes them in some fifty steps, which two processes must not take at once, nor one by half: so in a file
    aside, which gets its name when it is whole.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        store = SqlAlchemyStore(f"sqlite:///{aside}", (path.parent / "artifacts").as_uri())  # type: ignore[no-untyped-call]
        store.engine.dispose()
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class Tracker:
    """One sweep in MLflow. problem: why not everything is shown, or null. Not for two threads at once."""

    def __init__(
        self,
        conf: TrackingConf,
        results: Path,
        storage: Storage,
        sweep: str,
        tags: dict[str, str],
        *,
        restore: bool = False,
    ) -> None:
        """Raises PrerequisiteError when MLflow cannot be used.

        The caller holds the sweep's lease: what is half written is taken for left behind. tags: of the sweep's run.
        restore: leave what that run says of itself, and look whether the files of all runs are there.
        """
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self._conf = conf
        self._artifacts = (results / "mlflow" / "artifacts").resolve().as_uri() if conf.uri is None else None
        self._storage = storage
        self._sweep = sweep
        self._restore = restore
        self._tags = tags
        self._checked: set[str] = set()
        self.problem: str | None = None
        self.deadline = math.inf  # on the monotonic clock: no attempt is begun after it
        try:
            if conf.uri is None:
                create_database(_database(results))
            self._client = MlflowClient(tracking_uri(conf, results))
            self._connect()
        except UNREACHABLE as error:
            raise PrerequisiteError(_refusal(conf, results, sweep, error)) from error

    @property
    def num_runs(self) -> int:
        """Attempts of the sweep that MLflow holds."""
        return len(self._runs)

    def run_id(self, attempt: Attempt) -> str | None:
        """The child run of an attempt, or null while it has none."""
        return self._runs.get(attempt.name)

    def log_attempts(self, cells: Sequence[Cell], states: Mapping[str, CellState]) -> None:
        """Show every ended attempt of these cells that has no run yet, oldest first, and the counts of the sweep.

        After a failure, all that MLflow has is looked up again first.
        """
        ended = [(c, a) for c in cells for a in states[c.key].attempts if a.result is not None]
        with self._answering():
            if self.problem is not None:
                self._connect()
            waiting = [(cell, attempt) for cell, attempt in ended if not self._is_shown(attempt)]
            waiting.sort(key=lambda pair: ended_at(pair[1]))
            for number, (cell, attempt) in enumerate(waiting):
                if time.monotonic() > self.deadline:
                    self.problem = f"MLflow is slow: {len(waiting) - number} attempts are not shown yet"
                    return
                manifest = self._storage.manifest(cell.quantize_key)
                self._show(attempt_page(self._sweep, cell, states[cell.key], attempt, manifest), cell)
            note = RunTag(NOTE, sweep_note(self._sweep, cells, states))
            self._client.log_batch(self._parent, _metrics(sweep_metrics(states), time.time()), tags=[note])
            self.problem = None

    def close(self, status: CellStatus, tables: Path) -> None:
        """End the sweep's run, with the tables and the report in `tables` attached."""
        if self.problem is not None:  # asking again would cost another time-out
            return
        with self._answering():
            for name in TABLES:
                self._client.log_artifact(self._parent, str(tables / name))
            self._client.set_terminated(self._parent, RUN_STATUS[status])

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """MLflow is a view: when it fails in the middle of a sweep, the sweep goes on, and `problem` says why."""
        try:
            yield
        except UNREACHABLE as error:
            self.problem = f"MLflow has stopped answering: {_first_line(error)}"

    # --- what is there -----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._experiment = self._find_or_create_experiment()
        self._parent = self._find_or_create_parent()
        self._runs = self._existing_runs()

    def _find_or_create_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._conf.experiment)
        if found is None:
            try:
                created = self._client.create_experiment(
                    self._conf.experiment, artifact_location=self._artifacts, tags=dict(EXPERIMENT_TAGS)
                )
                return str(created)
            except MlflowException as error:
                found = self._client.get_experiment_by_name(self._conf.experiment)
                if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        if found.lifecycle_stage == LifecycleStage.DELETED:
            self._client.restore_experiment(found.experiment_id)
        if self._artifacts is not None and found.artifact_location != self._artifacts:
            raise OSError(f"its files belong to {found.artifact_location}, from where it was moved or copied")
        return str(found.experiment_id)

    def _find_or_create_parent(self) -> str:
        """The sweep's run. Of several (one was deleted and restored), the youngest."""
        own = {TAG_KIND: "sweep", TAG_SWEEP: self._sweep, TAG_STORAGE: self._storage.id}
        found = self._search(own)
        for superfluous in found[1:]:
            self._client.delete_run(superfluous.info.run_id)
        if not found:
            source = {"mlflow.source.name": "ptqbench sweep", "mlflow.source.type": "LOCAL"}
            run = self._client.create_run(self._experiment, run_name=self._sweep, tags={**own, **source, **self._tags})
            return str(run.info.run_id)
        run_id = str(found[0].info.run_id)
        if not self._restore:
            self._client.update_run(run_id, status="RUNNING")
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in self._tags.items()])
        return run_id

    def _existing_runs(self) -> dict[str, str]:
        """Attempt -> run id of the children of this sweep. What was left half written, or is there twice, is deleted.

        A child of a parent that is gone becomes a child of the present one.
        """
        found: dict[str, str] = {}
        for run in self._search({TAG_KIND: "attempt", TAG_SWEEP: self._sweep, TAG_STORAGE: self._storage.id}):
            name, run_id = run.data.tags[TAG_ATTEMPT], run.info.run_id
            if run.info.status == "RUNNING" or name in found:
                self._client.delete_run(run_id)
                continue
            if run.data.tags[PARENT] != self._parent:
                self._client.set_tag(run_id, PARENT, self._parent)
            found[name] = run_id
        return found

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        """All runs with these tags, the youngest first; deleted ones are not looked at."""
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    # --- one attempt -------------------------------------------------------------------------------------------------

    def _is_shown(self, attempt: Attempt) -> bool:
        """Whether nothing is left to do for an attempt; when restoring, its files have been looked at too."""
        return attempt.name in self._runs and (not self._restore or attempt.name in self._checked)

    def _show(self, page: RunPage, cell: Cell) -> None:
        """Make the run of an attempt, or only attach the files it lacks."""
        attempt = page.tags[TAG_ATTEMPT]
        run_id = self._runs.get(attempt)
        if run_id is not None:
            self._attach(run_id, page, cell, there=self._sizes(run_id))
        else:
            tags = {**page.tags, TAG_STORAGE: self._storage.id, PARENT: self._parent}
            run = self._client.create_run(
                self._experiment, start_time=round(page.started * 1000), run_name=page.name, tags=tags
            )
            run_id = run.info.run_id
            metrics = _metrics(page.metrics, page.ended)
            self._client.log_batch(run_id, metrics[:MAX_BATCH], params=[Param(k, v) for k, v in page.params.items()])
            for first in range(MAX_BATCH, len(metrics), MAX_BATCH):
                self._client.log_batch(run_id, metrics[first : first + MAX_BATCH])
            self._attach(run_id, page, cell, there={})
            self._client.set_terminated(run_id, RUN_STATUS[page.status], end_time=round(page.ended * 1000))
            self._runs[attempt] = run_id
        self._checked.add(attempt)

    def _sizes(self, run_id: str, directory: str | None = None) -> dict[str, int]:
        """Bytes of each file attached to a run."""
        found: dict[str, int] = {}
        for file in self._client.list_artifacts(run_id, directory):
            found |= self._sizes(run_id, file.path) if file.is_dir else {file.path: file.file_size or 0}
        return found

    def _attach(self, run_id: str, page: RunPage, cell: Cell, *, there: Mapping[str, int]) -> None:
        """Attach the artifacts of a page that are not there in their size, in one go."""
        with tempfile.TemporaryDirectory() as temporary:
            staged = Path(temporary)
            for name, text in page.texts.items():
                (staged / name).write_text(text, encoding="utf-8")
            for name, path in (page.files | self._checkpoint_files(page, cell)).items():
                (staged / name).parent.mkdir(exist_ok=True)
                (staged / name).symlink_to(path)
            missing: defaultdict[str, list[Path]] = defaultdict(list)
            for path in sorted(staged.rglob("*")):
                name = path.relative_to(staged).as_posix()
                if path.is_file() and there.get(name) != path.stat().st_size:
                    missing[path.parent.relative_to(staged).as_posix()].append(path)
            for directory, paths in missing.items():
                for path in paths:
                    self._client.log_artifact(run_id, str(path), None if directory == "." else directory)

    def _checkpoint_files(self, page: RunPage, cell: Cell) -> dict[str, Path]:
        """With tracking.upload_checkpoints, the files of a checkpoint that was scored, by their artifact names."""
        if not self._conf.upload_checkpoints or page.status is not CellStatus.SUCCEEDED:
            return {}
        directory = self._storage.checkpoint(cell.quantize_key)
        return {f"checkpoint/{path.name}": path for path in directory.iterdir() if path.is_file()}


def _database(results: Path) -> Path:
    return (results / "mlflow" / "mlflow.db").resolve()


def _metrics(values: Mapping[str, float], seconds: float) -> list[MlflowMetric]:
    """seconds: since 1970."""
    return [MlflowMetric(name, value, round(seconds * 1000), 0) for name, value in values.items()]


def _refusal(conf: TrackingConf, results: Path, sweep: str, error: Exception) -> str:
    if conf.uri is not None:
        return (
            f"MLflow does not answer at {conf.uri}: {_first_line(error)}; start it (mlflow server --host 127.0.0.1), "
            "or track locally: tracking=local"
        )
    return (
        f"MLflow's tables in {results / 'mlflow'} cannot be used: {_first_line(error)}; they are only a view: move "
        f"that directory away, then make sync ARGS='name={sweep}'"
    )


def _first_line(error: BaseException) -> str:
    """Of what is at the bottom of it: the layers above tell of themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
