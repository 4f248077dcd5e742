"""A cluster in simulated time that carries out what a Schedule says, breaks at random, and checks every action.

What must hold is kept as a model of its own (who may start when, with which placement, what a failure leads to), so an
action that breaks a rule fails where it happens.
"""

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.events import (
    Action,
    AttemptEnded,
    CellSucceeded,
    EvaluateEnded,
    Event,
    Job,
    Node,
    NodesChanged,
    QuantizeEnded,
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.placement import Placement
from orchestrator.schedule import HOMELESS_SECONDS, Schedule
from workers.api import Failure, FailureKind

T = TypeVar("T")

RETRIES = {FailureKind.TRANSIENT: 3, FailureKind.WORKER_LOST: 2}
FIRST_DELAY_SECONDS = 10.0
TICK_SECONDS = 1.0
STUCK_SECONDS = 3000.0  # simulated seconds without anything at work, after which nothing will ever come


@dataclass(frozen=True)
class Faults:
    """How often what breaks. kinds: of a stage that fails; delay_seconds: until the driver hears of a loss."""

    failure_chance: float = 0.0
    kinds: tuple[FailureKind, ...] = (FailureKind.INTERNAL,)
    host_death_chance: float = 0.0
    node_changes: int = 0
    node_seconds: float = 100.0
    delay_seconds: float = 0.0
    fixed_nodes: frozenset[str] = frozenset()


@dataclass
class _Host:
    host_id: str
    host_key: str
    placement: Placement
    node_id: str
    cell: str | None = None
    dead: bool = False
    known_dead: bool = False  # the schedule was told


@dataclass
class _Stage:
    """What waits, runs or is over: the making of a checkpoint, or the scoring of a cell."""

    keys: list[str]
    state: str = "waiting"  # waiting | running | done | given up
    not_before: float = 0.0
    out_of_memory: int = 0


@dataclass
class Record:
    """What happened, for tests that look at the order of things."""

    actions: list[tuple[float, Action]] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, kind: type[T]) -> list[T]:
        """The actions of one kind, in order."""
        return [action for _, action in self.actions if isinstance(action, kind)]


class SimulatedCluster:
    """Runs a Schedule to its end."""

    def __init__(
        self,
        jobs: list[Job],
        nodes: list[Node],
        *,
        seed: int = 0,
        faults: Faults = Faults(),
        idle_seconds: float = 30.0,
        seconds: Callable[[Job, str], float] | None = None,
        outcome: Callable[[Job, str, int], FailureKind | None] | None = None,
    ) -> None:
        """seconds(job, stage) and outcome(job, stage, number of the try) replace chance where a test needs to."""
        self.schedule = Schedule(jobs, idle_seconds=idle_seconds)
        self.record = Record()
        self.now = 0.0
        self._random = random.Random(seed)
        self._faults = faults
        self._jobs = {job.key: job for job in jobs}
        self._all_nodes = {node.id: node for node in nodes}
        self._there = dict(self._all_nodes)
        self._seen: dict[str, Node] = {}
        self._seconds = seconds or self._random_seconds
        self._outcome = outcome or self._random_outcome
        self._counter = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._in_flight: dict[str, tuple[int, str, Callable[[], Event]]] = {}  # cell -> entry, node, its loss
        self._held: defaultdict[str, dict[str, Placement]] = defaultdict(dict)
        self._hosts: dict[str, _Host] = {}
        self._checkpoints: dict[str, _Stage] = {}
        self._scores: dict[str, _Stage] = {}
        self._failures: defaultdict[str, list[FailureKind]] = defaultdict(list)
        self._tries: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._ended: dict[str, FailureKind | None] = {}
        self._expected: list[Action] = []
        ready = {job.quantize_key for job in jobs if job.checkpoint_ready}
        for job in jobs:
            self._checkpoints.setdefault(job.quantize_key, _Stage([])).keys.append(job.key)
            if job.quantize_key in ready:
                self._checkpoints[job.quantize_key].state = "done"
            self._scores[job.key] = _Stage([job.key])

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> Record:
        """Until every cell has ended and every host is gone; raises AssertionError where a rule is broken."""
        self._plan_node_changes()
        self._tell(Tick(0.0))
        self._tell_nodes()
        quiet = 0.0
        while not self.schedule.finished:
            if self._agenda:
                quiet = 0.0 if self._in_flight else quiet + self._agenda[0][0] - self.now
                self.now, _, happen = heapq.heappop(self._agenda)
                self._tell(Tick(self.now))
                happen()
            else:
                quiet += TICK_SECONDS
                self.now += TICK_SECONDS
                self._tell(Tick(self.now))
            assert quiet < STUCK_SECONDS, f"stuck at {self.now}: {set(self._jobs) - set(self._ended)}"
        assert self._ended.keys() == self._jobs.keys(), "finished before every cell had ended"
        assert not self._hosts and not self._in_flight, "finished with something at work"
        self.record.seconds = self.now
        return self.record

    @property
    def ends(self) -> dict[str, FailureKind | None]:
        """Cell -> the kind of its last failure, null where it succeeded."""
        return self._ended

    def _tell(self, event: Event) -> None:
        actions = self.schedule.handle(event)
        self.record.actions += [(self.now, action) for action in actions]
        for action in actions:
            self._carry_out(action)
        assert not self._expected, f"{event} should have led to {self._expected}, not {actions}"
        self._check_not_idle_for_nothing()

    def _tell_nodes(self) -> None:
        self._seen = dict(self._there)
        self._tell(NodesChanged(tuple(self._seen.values())))

    def _at(self, seconds: float, happen: Callable[[], None]) -> int:
        number = next(self._counter)
        heapq.heappush(self._agenda, (self.now + seconds, number, happen))
        return number

    # --- chance ------------------------------------------------------------------------------------------------------

    def _random_seconds(self, job: Job, stage: str) -> float:
        return round(self._random.uniform(0.1, 60.0), 1)

    def _random_outcome(self, job: Job, stage: str, number: int) -> FailureKind | None:
        if self._random.random() < self._faults.failure_chance:
            return self._random.choice(self._faults.kinds)
        return None

    def _delay(self) -> float:
        return self._random.uniform(0.0, self._faults.delay_seconds)

    def _plan_node_changes(self) -> None:
        """Nodes leave, and come back after at most `node_seconds`."""
        movable = sorted(set(self._all_nodes) - self._faults.fixed_nodes)
        for _ in range(self._faults.node_changes if movable else 0):
            node_id, away = self._random.choice(movable), self._random.uniform(0.0, self._faults.node_seconds)
            self._at(self._random.uniform(0.0, 200.0), lambda n=node_id, s=away: self._leave(n, s))  # type: ignore[misc]

    def _leave(self, node_id: str, away_seconds: float) -> None:
        if self._there.pop(node_id, None) is None:
            return
        for host in self._hosts.values():
            host.dead = host.dead or host.node_id == node_id
        for key, (entry, where, loss) in list(self._in_flight.items()):
            if where == node_id:
                self._lose(key, entry, loss)
        self._at(self._delay(), self._tell_nodes)
        self._at(away_seconds, lambda: self._join(node_id))

    def _join(self, node_id: str) -> None:
        self._there[node_id] = self._all_nodes[node_id]
        self._at(self._delay(), self._tell_nodes)

    def _lose(self, key: str, entry: int, loss: Callable[[], Event]) -> None:
        """What was in flight will end as lost instead."""
        self._agenda = [item for item in self._agenda if item[1] != entry]
        heapq.heapify(self._agenda)
        node_id = self._in_flight[key][1]
        number = self._at(self._delay(), lambda: self._end(key, loss()))
        self._in_flight[key] = (number, f"gone from {node_id}", loss)

    # --- actions -----------------------------------------------------------------------------------------------------

    def _carry_out(self, action: Action) -> None:
        match action:
            case StartQuantize(key, placement, node_id):
                self._start_quantize(key, placement, node_id)
            case StartHost(host_id, host_key, placement, node_id):
                assert host_id not in self._hosts
                self._take(host_id, placement, node_id)
                dead = node_id not in self._there
                self._hosts[host_id] = _Host(host_id, host_key, placement, node_id, dead=dead)
            case StartEvaluate(key, host_id):
                self._start_evaluate(key, self._hosts[host_id])
            case StopHost(host_id):
                host = self._hosts.pop(host_id)
                assert host.cell is None, f"{host_id} was stopped at work"
                del self._held[host.node_id][host_id]
            case AttemptEnded() | CellSucceeded():
                assert action in self._expected or self._is_homeless(action), f"{action}; expected {self._expected}"
                if action in self._expected:
                    self._expected.remove(action)
                self._note_end(action)

    def _note_end(self, action: AttemptEnded | CellSucceeded) -> None:
        if isinstance(action, CellSucceeded) or action.final:
            assert action.key not in self._ended, f"{action.key} ended twice"
            self._ended[action.key] = None if isinstance(action, CellSucceeded) else action.failure.kind

    def _is_homeless(self, action: Action) -> bool:
        """Cells that no node is large enough for are given up after a time; here never while such a node is there."""
        if not isinstance(action, AttemptEnded) or not action.final or "no node" not in action.failure.message:
            return False
        job = self._jobs[action.key]
        stage = self._checkpoints[job.quantize_key] if action.failure.stage == "quantize" else self._scores[action.key]
        ladder = job.quantize if action.failure.stage == "quantize" else job.evaluate
        assert self.now >= HOMELESS_SECONDS
        assert not any(_fits(ladder[stage.out_of_memory], node) for node in self._seen.values())
        stage.state = "given up"
        return True

    def _start_quantize(self, key: str, placement: Placement, node_id: str) -> None:
        job = self._jobs[key]
        checkpoint = self._checkpoints[job.quantize_key]
        assert key == checkpoint.keys[0]
        self._check_start(checkpoint, job.quantize, placement)
        self._take(key, placement, node_id)
        kind = self._try(job, "quantize")
        self._launch(
            key,
            node_id,
            self._seconds(job, "quantize"),
            lambda: QuantizeEnded(key, _failure("quantize", kind)),
            lambda: QuantizeEnded(key, _failure("quantize", FailureKind.WORKER_LOST)),
            dead=node_id not in self._there,
        )

    def _start_evaluate(self, key: str, host: _Host) -> None:
        job = self._jobs[key]
        assert host.cell is None and not host.known_dead and host.host_key == job.host_key
        assert self._checkpoints[job.quantize_key].state == "done"
        self._check_start(self._scores[key], job.evaluate, host.placement)
        host.cell = key
        kind = self._try(job, "evaluate")
        exits = kind in (FailureKind.OUT_OF_MEMORY, FailureKind.CUDA, FailureKind.WORKER_LOST)
        died = self._random.random() < self._faults.host_death_chance
        self._launch(
            key,
            host.node_id,
            self._seconds(job, "evaluate"),
            lambda: EvaluateEnded(key, host.host_id, _failure("evaluate", kind), host_alive=not exits),
            lambda: EvaluateEnded(key, host.host_id, _failure("evaluate", FailureKind.WORKER_LOST), host_alive=False),
            dead=host.dead or died,
        )

    def _try(self, job: Job, stage: str) -> FailureKind | None:
        self._tries[job.key, stage] += 1
        return self._outcome(job, stage, self._tries[job.key, stage])

    def _launch(
        self,
        key: str,
        node_id: str,
        seconds: float,
        end: Callable[[], Event],
        loss: Callable[[], Event],
        *,
        dead: bool,
    ) -> None:
        assert key not in self._in_flight, f"{key} runs twice"
        entry = self._at(self._delay() if dead else seconds, lambda: self._end(key, (loss if dead else end)()))
        self._in_flight[key] = (entry, node_id, loss)

    def _check_start(self, stage: _Stage, ladder: tuple[Placement, ...], placement: Placement) -> None:
        assert stage.state == "waiting", f"{stage} was started"
        assert self.now >= stage.not_before - 1e-6, f"{stage} was started at {self.now}"
        assert placement == ladder[stage.out_of_memory]
        assert not self._ended.keys() & set(stage.keys)
        stage.state = "running"

    def _take(self, holder: str, placement: Placement, node_id: str) -> None:
        assert node_id in self._seen, f"{holder} was started on a node that is not there"
        held, node = self._held[node_id], self._seen[node_id]
        held[holder] = placement
        assert sum(p.num_gpus for p in held.values()) <= node.num_gpus, f"GPUs of {node_id}: {held}"
        assert sum(p.num_cpus for p in held.values()) <= node.num_cpus, f"CPUs of {node_id}: {held}"
        assert sum(p.memory_gib for p in held.values()) <= node.memory_gib + 1e-6, f"memory of {node_id}: {held}"

    # --- ends --------------------------------------------------------------------------------------------------------

    def _end(self, key: str, event: Event) -> None:
        """Tell of an end, and expect what must follow from it."""
        _, node_id, _ = self._in_flight.pop(key)
        job = self._jobs[key]
        if isinstance(event, QuantizeEnded):
            stage, ladder = self._checkpoints[job.quantize_key], job.quantize
            del self._held[node_id.removeprefix("gone from ")][key]
        else:
            assert isinstance(event, EvaluateEnded)
            stage, ladder = self._scores[key], job.evaluate
            host = self._hosts[event.host_id]
            host.cell, host.known_dead = None, not event.host_alive
        failure = event.failure
        if failure is not None:
            self._expected = self._after(key, stage, ladder, failure)
        else:
            stage.state = "done"
            self._expected = [CellSucceeded(key)] if isinstance(event, EvaluateEnded) else []
        self._tell(event)

    def _after(self, key: str, stage: _Stage, ladder: tuple[Placement, ...], failure: Failure) -> list[Action]:
        self._failures[key].append(failure.kind)
        count = self._failures[key].count(failure.kind)
        if failure.kind is FailureKind.OUT_OF_MEMORY and stage.out_of_memory + 1 < len(ladder):
            stage.out_of_memory += 1
            stage.state = "waiting"
            return [AttemptEnded(key, failure, final=False)]
        if count <= RETRIES.get(failure.kind, 0):
            stage.not_before = self.now + FIRST_DELAY_SECONDS * 2 ** (count - 1)
            stage.state = "waiting"
            return [AttemptEnded(key, failure, final=False)]
        stage.state = "given up"
        return [AttemptEnded(k, failure, final=True) for k in stage.keys]

    def _check_not_idle_for_nothing(self) -> None:
        """With nothing at work, whatever may run and fits on an empty node must not wait."""
        if self._in_flight or self.schedule.finished:
            return
        waiting = [(s, self._jobs[s.keys[0]].quantize) for s in self._checkpoints.values()]
        waiting += [
            (s, self._jobs[key].evaluate)
            for key, s in self._scores.items()
            if self._checkpoints[self._jobs[key].quantize_key].state == "done"
        ]
        for stage, ladder in waiting:
            if stage.state == "waiting" and stage.not_before <= self.now:
                placement = ladder[stage.out_of_memory]
                able = [node.id for node in self._seen.values() if _fits(placement, node)]
                assert not able, f"nothing is at work, yet {stage} waits although {able} could take {placement}"


def _fits(placement: Placement, node: Node) -> bool:
    return (
        placement.num_gpus <= node.num_gpus
        and placement.num_cpus <= node.num_cpus
        and placement.memory_gib <= node.memory_gib
    )


def _failure(stage: str, kind: FailureKind | None) -> Failure | None:
    return None if kind is None else Failure(stage, kind, f"{kind} by chance")
