"""The loop between schedule and scheduler: opens attempts, starts stages, writes what nobody else can write.

Whoever opens, closes: attempts that a dead worker left open are ended here. A cell that another sweep's driver opens
first is left to that one.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conf.schema import ClusterConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.events import (
    Action,
    AttemptEnded,
    CellSucceeded,
    End,
    EvaluateEnded,
    Event,
    Job,
    LeftToAnother,
    NodesChanged,
    QuantizeEnded,
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.head import ClusterLostError
from orchestrator.progress import SweepProgress
from orchestrator.schedule import Schedule
from orchestrator.scheduler import Scheduler
from orchestrator.storage import (
    Attempt,
    AttemptTaken,
    CellState,
    Storage,
    end_attempt,
    lost,
    open_stage,
    read_result,
)
from workers.api import EvaluateRequest, Failure, FailureKind, QuantizeRequest
from workers.errors import PrerequisiteError

POLL_SECONDS = 0.5
NODES_SECONDS = 10.0
SHOW_SECONDS = 5.0


@dataclass(frozen=True)
class _Running:
    """A stage at work. host_id is null for quantize; deadline on the monotonic clock."""

    host_id: str | None
    deadline: float
    timeout_seconds: float


class Driver:
    """Drives the cells of one sweep to their ends."""

    def __init__(
        self,
        cells: list[Cell],
        jobs: list[Job],
        states: dict[str, CellState],
        storage: Storage,
        scheduler: Scheduler,
        progress: SweepProgress,
        cluster: ClusterConf,
        show: Callable[[], object] = lambda: None,
    ) -> None:
        """states: what was known when these cells were chosen; what another driver has opened since is left to it.

        show: called when attempts have ended, at most every SHOW_SECONDS; it may read the whole storage.
        """
        self._cells = {cell.key: cell for cell in cells}
        self._jobs = {job.key: job for job in jobs}
        self._schedule = Schedule(jobs, idle_seconds=cluster.idle_seconds)
        self._storage = storage
        self._scheduler = scheduler
        self._progress = progress
        self._cluster = cluster
        self._show = show
        self._unshown = False
        self._next_number = {key: state.next_number for key, state in states.items()}
        self._open: dict[str, Attempt] = {}
        self._left: list[Cell] = []
        self._running: dict[str, _Running] = {}
        self._engines: dict[str, str] = {job.host_key: self._cells[job.key].engine.name for job in jobs}

    def run(self) -> list[Cell]:
        """Return when every cell has ended: those left to another sweep. On interruption, close what is open and raise.

        Raises PrerequisiteError when the storage or the cluster can no longer be used.
        """
        try:
            self._loop()
        except ClusterLostError as error:
            self._end_open(CellStatus.FAILED, FailureKind.WORKER_LOST, str(error))
            raise
        except BaseException:
            message = "the sweep was interrupted; run it again to go on"
            self._end_open(CellStatus.CANCELLED, FailureKind.CANCELLED, message)
            raise
        return self._left

    def _loop(self) -> None:
        seen = shown = 0.0
        events: list[Event] = [Tick(time.monotonic()), self._nodes_changed()]
        while True:
            for event in events:
                for action in self._schedule.handle(self._settled(event)):
                    try:
                        self._carry_out(action)
                    except AttemptTaken:
                        self._leave(action, events)
            if self._schedule.finished:
                return
            if self._unshown and time.monotonic() - shown > SHOW_SECONDS:
                shown, self._unshown = time.monotonic(), False
                self._show()
            ends = self._scheduler.wait(POLL_SECONDS)
            events = [Tick(time.monotonic()), *ends, *self._timeouts(ends)]
            if self._schedule.num_running == 0:
                time.sleep(POLL_SECONDS)
            if time.monotonic() - seen > NODES_SECONDS or any(_is_loss(end) for end in ends):
                seen = time.monotonic()
                self._storage.check()
                events.insert(0, self._nodes_changed())

    def _nodes_changed(self) -> NodesChanged:
        """The nodes to use now; why another one is left out is said once."""
        event = NodesChanged(self._scheduler.nodes())
        for reason in self._scheduler.newly_refused():
            self._progress.note(f"left out: {reason}")
        return event

    def _settled(self, event: Event) -> Event:
        """An end as the attempt's result has it, which the driver writes where the worker did not live to.

        A worker may have died, or passed its time limit, just after it had written its own.
        """
        if not isinstance(event, QuantizeEnded | EvaluateEnded):
            return event
        cell, failure = self._cells[event.key], event.failure
        directory = self._open[event.key].directory
        del self._running[event.key]
        job = self._jobs[event.key]
        estimate = job.quantize_seconds if isinstance(event, QuantizeEnded) else job.evaluate_seconds
        self._progress.ended(cell, 0.0 if failure else estimate)
        if failure is None and isinstance(event, EvaluateEnded):
            failure = lost("evaluate", "the worker ended without a result")
        if failure is not None:
            failure = end_attempt(directory, cell, CellStatus.FAILED, failure).failure
        return dataclasses.replace(event, failure=failure)

    def _leave(self, action: Action, events: list[Event]) -> None:
        """Another sweep has the cell of this action; a start is answered, so that the schedule forgets it."""
        assert isinstance(action, StartQuantize | StartEvaluate | AttemptEnded)
        self._left.append(self._cells[action.key])
        self._progress.left_to_another(self._cells[action.key])
        if not isinstance(action, AttemptEnded):
            events.append(LeftToAnother(action.key))

    def _carry_out(self, action: Action) -> None:
        match action:
            case StartQuantize(key, placement, node_id):
                request = self._quantize_request(self._cells[key])
                self._started(key, None, self._cluster.quantize_timeout_seconds)
                self._scheduler.start_quantize(key, request, placement, node_id)
            case StartHost(host_id, host_key, placement, node_id):
                self._scheduler.start_host(host_id, self._engines[host_key], placement, node_id)
            case StartEvaluate(key, host_id):
                evaluation = self._evaluate_request(self._cells[key])
                self._started(key, host_id, self._cluster.evaluate_timeout_seconds)
                self._scheduler.start_evaluate(key, evaluation, host_id)
            case StopHost(host_id):
                self._scheduler.stop_host(host_id)
            case AttemptEnded(key, failure, final):
                self._attempt_ended(self._cells[key], failure, final=final)
            case CellSucceeded(key):
                self._cell_succeeded(self._cells[key])

    def _started(self, key: str, host_id: str | None, timeout_seconds: float) -> None:
        self._running[key] = _Running(host_id, time.monotonic() + timeout_seconds, timeout_seconds)
        self._progress.started(self._cells[key], "quantize" if host_id is None else "evaluate")

    def _timeouts(self, ends: Sequence[End]) -> list[End]:
        """Kill what has passed its time limit, unless it has just ended, and say so."""
        events: list[End] = []
        ended = {end.key for end in ends}
        for key, running in self._running.items():
            if key in ended or time.monotonic() < running.deadline:
                continue
            self._scheduler.abort(key)
            stage = "quantize" if running.host_id is None else "evaluate"
            failure = Failure(
                stage,
                FailureKind.TIMEOUT,
                f"{stage} took longer than {running.timeout_seconds:.0f} s; give it more: "
                f"cluster.{stage}_timeout_seconds=<seconds>",
            )
            if running.host_id is None:
                events.append(QuantizeEnded(key, failure))
            else:
                events.append(EvaluateEnded(key, running.host_id, failure, host_alive=False))
        return events

    def _attempt_ended(self, cell: Cell, failure: Failure, *, final: bool) -> None:
        attempt = self._open.pop(cell.key, None) or self._new_attempt(cell)
        end_attempt(attempt.directory, cell, CellStatus.FAILED, failure)
        if not final:  # open while it waits, so that after a driver's death the failure before is not the last word
            with contextlib.suppress(AttemptTaken):  # its start will find that out too
                self._attempt(cell)
        self._progress.failed(cell, failure, final=final)
        self._unshown = True

    def _cell_succeeded(self, cell: Cell) -> None:
        result = read_result(self._open.pop(cell.key).directory)
        assert result is not None and result.evaluate is not None
        first = result.evaluate.metrics[0]
        self._progress.succeeded(cell, f"{first.name} {first.value:.4g}")
        self._unshown = True

    def _attempt(self, cell: Cell) -> Attempt:
        if cell.key not in self._open:
            self._open[cell.key] = self._new_attempt(cell)
        return self._open[cell.key]

    def _new_attempt(self, cell: Cell) -> Attempt:
        """Raises AttemptTaken when another driver has opened one first."""
        attempt = self._storage.open_attempt(cell, self._next_number[cell.key])
        self._next_number[cell.key] += 1
        return attempt

    def _quantize_request(self, cell: Cell) -> QuantizeRequest:
        return QuantizeRequest(
            evaluate_key=cell.evaluate_key,
            quantize_key=cell.quantize_key,
            model=cell.model,
            method=cell.config.method,
            scheme=cell.config.scheme,
            calibration=cell.config.calibration,
            calibration_text=cell.calibration_text,
            seed=cell.config.seed,
            numerics=cell.config.numerics,
            storage=str(self._storage.root),
            attempt_directory=str(self._attempt(cell).directory),
            secrets=self._cluster.secrets,
            statistics_gib=self._cluster.statistics_gib,
        )

    def _evaluate_request(self, cell: Cell) -> EvaluateRequest:
        return EvaluateRequest(
            evaluate_key=cell.evaluate_key,
            quantize_key=cell.quantize_key,
            model=cell.model,
            suite=cell.config.suite,
            texts=cell.texts,
            engine=cell.engine.name,
            dtype=cell.engine.dtype,
            storage=str(self._storage.root),
            attempt_directory=str(self._attempt(cell).directory),
            secrets=self._cluster.secrets,
        )

    def _end_open(self, status: CellStatus, kind: FailureKind, message: str) -> None:
        for key, attempt in self._open.items():
            failure = Failure(open_stage(attempt.directory), kind, message)
            with contextlib.suppress(PrerequisiteError):  # on a storage that is gone or full; the next driver ends it
                end_attempt(attempt.directory, self._cells[key], status, failure)


def _is_loss(end: End) -> bool:
    """Perhaps its node is gone: better to know before anything is started there again."""
    return end.failure is not None and end.failure.kind is FailureKind.WORKER_LOST
