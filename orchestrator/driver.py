"""The loop between schedule and scheduler: opens attempts, starts stages, writes what nobody else can write.

Whoever opens, closes: attempts that a dead worker left open are ended here, and those of a dead driver when the next
one takes the sweep over.
"""

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
    NodesChanged,
    QuantizeEnded,
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.progress import SweepProgress
from orchestrator.schedule import Schedule
from orchestrator.scheduler import Scheduler
from orchestrator.storage import Attempt, CellState, Storage, end_attempt, lost, read_result
from workers.api import EvaluateRequest, Failure, FailureKind, QuantizeRequest

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
        storage: Storage,
        scheduler: Scheduler,
        progress: SweepProgress,
        cluster: ClusterConf,
        show: Callable[[], object] = lambda: None,
    ) -> None:
        """show: called when attempts have ended, at most every SHOW_SECONDS; it may read the whole storage."""
        self._cells = {cell.key: cell for cell in cells}
        self._schedule = Schedule(jobs, idle_seconds=cluster.idle_seconds)
        self._storage = storage
        self._scheduler = scheduler
        self._progress = progress
        self._cluster = cluster
        self._show = show
        self._unshown = False
        self._open: dict[str, Attempt] = {}
        self._running: dict[str, _Running] = {}
        self._engines: dict[str, str] = {job.host_key: self._cells[job.key].engine.name for job in jobs}

    def run(self) -> None:
        """Return when every cell has ended; on interruption, close what is open as CANCELLED and raise."""
        try:
            self._loop()
        except BaseException:
            self._cancel()
            raise

    def _loop(self) -> None:
        seen = shown = 0.0
        events: list[Event] = [Tick(time.monotonic()), self._nodes_changed()]
        while True:
            for event in events:
                self._before(event)
                for action in self._schedule.handle(event):
                    self._carry_out(action)
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
                events.insert(0, self._nodes_changed())

    def _nodes_changed(self) -> NodesChanged:
        """The nodes to use now; why another one is left out is said once."""
        event = NodesChanged(self._scheduler.nodes())
        for reason in self._scheduler.newly_refused():
            self._progress.note(f"left out: {reason}")
        return event

    def _before(self, event: Event) -> None:
        """Write the result of an attempt whose worker did not live to write it."""
        if not isinstance(event, QuantizeEnded | EvaluateEnded):
            return
        cell = self._cells[event.key]
        del self._running[event.key]
        if event.failure is not None:
            end_attempt(self._open[event.key].directory, cell, CellStatus.FAILED, event.failure)
        self._progress.paused(cell)

    def _carry_out(self, action: Action) -> None:
        match action:
            case StartQuantize(key, placement, node_id):
                request = self._quantize_request(self._cells[key])
                self._started(key, None, self._cluster.quantize_timeout_seconds)
                self._scheduler.start_quantize(key, request, placement, node_id)
            case StartHost(host_id, host_key, placement, node_id):
                self._scheduler.start_host(host_id, self._engines[host_key], placement, node_id)
            case StartEvaluate(key, host_id):
                self._started(key, host_id, self._cluster.evaluate_timeout_seconds)
                self._scheduler.start_evaluate(key, self._evaluate_request(self._cells[key]), host_id)
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
        attempt = self._open.pop(cell.key, None) or self._storage.open_attempt(cell)
        end_attempt(attempt.directory, cell, CellStatus.FAILED, failure)
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
            self._open[cell.key] = self._storage.open_attempt(cell)
        return self._open[cell.key]

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
        )

    def _cancel(self) -> None:
        for key, attempt in self._open.items():
            stage = "evaluate" if (attempt.directory / "quantize.json").exists() else "quantize"
            failure = Failure(stage, FailureKind.CANCELLED, "the sweep was interrupted; run it again to go on")
            end_attempt(attempt.directory, self._cells[key], CellStatus.CANCELLED, failure)


def _is_loss(end: End) -> bool:
    """Perhaps its node is gone: better to know before anything is started there again."""
    return end.failure is not None and end.failure.kind is FailureKind.WORKER_LOST


def close_abandoned(cells: list[Cell], states: dict[str, CellState]) -> int:
    """End attempts that a dead driver left open, as WORKER_LOST. Returns how many there were."""
    count = 0
    for cell in cells:
        last = states[cell.key].last
        if last is not None and last.result is None:
            message = "the driver of this attempt went down before it ended"
            end_attempt(last.directory, cell, CellStatus.FAILED, lost("quantize", message))
            count += 1
    return count
