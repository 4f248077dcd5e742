"""The loop between schedule and scheduler: whoever opens an attempt closes it, whatever comes back and when."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from conf.schema import ClusterConf
from orchestrator import driver as driving
from orchestrator import retry
from orchestrator.cell import Cell, CellStatus
from orchestrator.driver import Driver
from orchestrator.events import End, EvaluateEnded, Job, Node, QuantizeEnded
from orchestrator.head import ClusterLostError
from orchestrator.placement import Placement
from orchestrator.progress import SweepProgress
from orchestrator.storage import Storage
from tests.orchestrator.hand_made import make_cell
from workers.api import (
    AttemptResult,
    EvaluateRequest,
    EvaluateResult,
    Failure,
    FailureKind,
    Metric,
    QuantizeRequest,
    to_json,
)
from workers.files import create

ONE_CPU = Placement(0, 1, 1.0)
LOST = Failure("quantize", FailureKind.WORKER_LOST, "the worker process died")


class FakeScheduler:
    """Answers every start at the next `wait`; `quantize` says how a try of that stage ends."""

    def __init__(self, quantize: Callable[[int], Failure | None] = lambda number: None) -> None:
        self.cluster = [Node("old", 0, 1, 8.0)]
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.hosts: set[str] = set()
        self.refused: list[str] = []
        self._quantize = quantize
        self._ends: list[End] = []

    def nodes(self) -> tuple[Node, ...]:
        return tuple(self.cluster)

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        self.started.append(f"quantize on {node_id}")
        self._ends.append(QuantizeEnded(key, self._quantize(len(self.started))))

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        self.hosts.add(host_id)

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        self.started.append(f"evaluate on {host_id}")
        evaluated = EvaluateResult([Metric("t.perplexity", 7.5, None, 8, "1")], "v", "fresh", 0.0)
        result = AttemptResult(request.evaluate_key, request.quantize_key, "SUCCEEDED", None, None, evaluated)
        create(Path(request.attempt_directory) / "result.json", to_json(result))
        self._ends.append(EvaluateEnded(key, host_id, None))

    def abort(self, key: str) -> None:
        self.aborted.append(key)

    def stop_host(self, host_id: str) -> None:
        self.hosts.remove(host_id)

    def wait(self, timeout_seconds: float) -> list[End]:
        ends, self._ends = self._ends, []
        return ends

    def admit(self, storage: Path, inputs: tuple[str, ...]) -> list[str]:
        return []

    def newly_refused(self) -> list[str]:
        reasons, self.refused = self.refused, []
        return reasons

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(driving, "NODES_SECONDS", 1e12)
    monkeypatch.setattr(retry, "FIRST_DELAY_SECONDS", 0.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def drive(storage: Storage, cell: Cell, scheduler: FakeScheduler, **limits: float) -> list[str]:
    """Run one cell to its end; returns how its attempts ended."""
    job = Job(cell.key, cell.quantize_key, "m", (ONE_CPU,), (ONE_CPU,), 1.0, 1.0, False, False)
    cluster = ClusterConf(name="fake", idle_seconds=0.0, **limits)  # type: ignore[arg-type]
    with SweepProgress(Console(file=io.StringIO()), 1, 0.0) as progress:
        Driver([cell], [job], storage.states([cell]), storage, scheduler, progress, cluster).run()
    assert scheduler.hosts == set()
    attempts = storage.states([cell])[cell.key].attempts
    return [a.result.failure.kind if a.result.failure else a.result.status for a in attempts if a.result is not None]


def test_a_cell_is_quantized_and_scored_in_one_attempt(storage: Storage) -> None:
    scheduler = FakeScheduler()
    assert drive(storage, make_cell(), scheduler) == ["SUCCEEDED"]
    assert scheduler.started == ["quantize on old", "evaluate on host-1"]


def test_each_lost_worker_is_an_attempt_and_a_lost_node_is_not_tried_again(storage: Storage) -> None:
    def dies_with_its_node(number: int) -> Failure | None:
        if number > 1:
            return None
        scheduler.cluster = [Node("new", 0, 1, 8.0)]
        return LOST

    scheduler = FakeScheduler(dies_with_its_node)
    assert drive(storage, make_cell(), scheduler) == ["WORKER_LOST", "SUCCEEDED"]
    assert scheduler.started[:2] == ["quantize on old", "quantize on new"]


def test_after_the_last_try_the_cell_has_failed(storage: Storage) -> None:
    cell = make_cell()
    assert drive(storage, cell, FakeScheduler(lambda number: LOST)) == ["WORKER_LOST"] * 3
    assert storage.states([cell])[cell.key].status is CellStatus.FAILED


def test_a_stage_that_takes_too_long_is_killed_and_says_what_to_raise(storage: Storage) -> None:
    class Hanging(FakeScheduler):
        def wait(self, timeout_seconds: float) -> list[End]:
            return []

    cell, scheduler = make_cell(), Hanging()
    assert drive(storage, cell, scheduler, quantize_timeout_seconds=0.0) == ["TIMEOUT"]
    assert scheduler.aborted == [cell.key]
    last = storage.states([cell])[cell.key].last
    assert last is not None and last.result is not None and last.result.failure is not None
    assert "cluster.quantize_timeout_seconds=<seconds>" in last.result.failure.message


def test_a_stage_that_ends_just_at_its_limit_has_ended(storage: Storage) -> None:
    scheduler = FakeScheduler()
    limits = {"quantize_timeout_seconds": 0.0, "evaluate_timeout_seconds": 0.0}
    assert drive(storage, make_cell(), scheduler, **limits) == ["SUCCEEDED"]
    assert scheduler.aborted == []


def test_a_cell_that_waits_for_its_next_try_is_unfinished_when_the_driver_is_interrupted(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InterruptedLater(FakeScheduler):
        def wait(self, timeout_seconds: float) -> list[End]:
            if ends := super().wait(timeout_seconds):
                return ends
            raise KeyboardInterrupt

    monkeypatch.setattr(retry, "FIRST_DELAY_SECONDS", 1e6)
    cell, hub = make_cell(), Failure("quantize", FailureKind.TRANSIENT, "the hub does not answer")
    with pytest.raises(KeyboardInterrupt):
        drive(storage, cell, InterruptedLater(lambda number: hub))
    assert storage.states([cell])[cell.key].status is CellStatus.CANCELLED, "not FAILED, which only resubmit takes up"


def test_an_interrupted_driver_closes_what_is_open(storage: Storage) -> None:
    class Interrupted(FakeScheduler):
        def wait(self, timeout_seconds: float) -> list[End]:
            raise KeyboardInterrupt

    cell = make_cell()
    with pytest.raises(KeyboardInterrupt):
        drive(storage, cell, Interrupted())
    assert storage.states([cell])[cell.key].status is CellStatus.CANCELLED


def test_a_lost_cluster_closes_what_is_open_as_lost_and_says_so(storage: Storage) -> None:
    class Beheaded(FakeScheduler):
        def wait(self, timeout_seconds: float) -> list[End]:
            raise ClusterLostError("the head does not answer")

    cell = make_cell()
    with pytest.raises(ClusterLostError):
        drive(storage, cell, Beheaded())
    last = storage.states([cell])[cell.key].last
    assert last is not None and last.result is not None
    assert last.result.failure == Failure("quantize", FailureKind.WORKER_LOST, "the head does not answer")


def test_a_worker_that_dies_just_after_writing_its_result_has_succeeded(storage: Storage) -> None:
    class Unlucky(FakeScheduler):
        def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
            super().start_evaluate(key, request, host_id)
            self._ends[-1] = EvaluateEnded(key, host_id, LOST, host_alive=False)

    assert drive(storage, make_cell(), Unlucky()) == ["SUCCEEDED"]


def test_what_was_lost_under_an_earlier_driver_does_not_count_against_the_retries_of_this_one(storage: Storage) -> None:
    cell = make_cell()
    drive(storage, cell, FakeScheduler(lambda number: LOST))
    scheduler = FakeScheduler(lambda number: LOST if number <= 2 else None)
    assert drive(storage, cell, scheduler) == ["WORKER_LOST"] * 5 + ["SUCCEEDED"]


def test_what_a_dead_driver_left_open_is_closed_as_lost(storage: Storage) -> None:
    cell = make_cell()
    storage.open_attempt(cell, 1)
    assert storage.end_abandoned([cell]) == 1
    state = storage.states([cell])[cell.key]
    assert state.last is not None and state.last.result is not None and state.last.result.failure is not None
    assert state.last.result.failure.kind is FailureKind.WORKER_LOST
    assert storage.end_abandoned([cell]) == 0


def test_why_a_node_is_left_out_is_said_once(storage: Storage) -> None:
    said = io.StringIO()
    scheduler = FakeScheduler(quantize=lambda number: LOST if number == 1 else None)  # a loss looks at the nodes again
    scheduler.refused = ["node new (10.0.0.7, 0123abcd): it has no /models/tiny"]
    cell = make_cell()
    job = Job(cell.key, cell.quantize_key, "m", (ONE_CPU,), (ONE_CPU,), 1.0, 1.0, False, False)
    with SweepProgress(Console(file=said, width=200), 1, 0.0) as progress:
        cluster = ClusterConf(name="fake", idle_seconds=0.0)
        Driver([cell], [job], storage.states([cell]), storage, scheduler, progress, cluster).run()
    assert said.getvalue().count("left out: node new (10.0.0.7, 0123abcd): it has no /models/tiny\n") == 1
