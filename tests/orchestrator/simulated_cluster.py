"""A cluster in simulated time that carries out what a Schedule says and breaks at random.

The promises that every event and action must keep stand in scheduling_rules.py. Here is what is true of the world: when
a worker ends, what it leaves in the storage, when the driver hears of it, and what the next driver finds.
"""

import dataclasses
import heapq
import itertools
import random
from collections import Counter
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
    LeftToAnother,
    Node,
    NodesChanged,
    QuantizeEnded,
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.schedule import Schedule
from tests.orchestrator.scheduling_rules import Rules
from workers.api import Failure, FailureKind

T = TypeVar("T")

TIME_LIMIT_SECONDS = 400.0  # of a stage, as the driver sets it
STALL_SECONDS = 60.0  # how long a driver that waits for a storage or is stopped hears nothing
STUCK_SECONDS = 3000.0  # simulated seconds without anything at work, after which nothing will ever come
EXITS = (
    FailureKind.OUT_OF_MEMORY,
    FailureKind.CUDA,
    FailureKind.WORKER_LOST,
)  # a worker's process does not outlive these
COUNTED = (FailureKind.OUT_OF_MEMORY, FailureKind.TRANSIENT)  # under their own names
FAULT_SECONDS = 200.0  # when nodes leave, drivers die or stall: at random within this time


@dataclass(frozen=True)
class Faults:
    """How often what breaks. kinds: of a stage that fails; stage_seconds: how long one takes at most."""

    stage_seconds: float = 60.0
    failure_chance: float = 0.0
    kinds: tuple[FailureKind, ...] = (FailureKind.INTERNAL,)
    host_death_chance: float = 0.0
    node_changes: int = 0
    node_seconds: float = 100.0  # how long a node is away at most
    fixed_nodes: frozenset[str] = frozenset()
    delay_seconds: float = 0.0  # until the driver hears of a loss, at most
    slow_seconds: float = 0.0  # until the driver hears of an end, at most
    lost_chance: float = 0.0  # of an end that the driver never hears of
    hang_chance: float = 0.0  # of a stage that never ends
    restarts: int = 0  # of the driver
    taken_chance: float = 0.0  # of a cell, when it is started: another sweep's driver was faster
    stalls: int = 0  # of the driver: it hears all at once afterwards


@dataclass
class Record:
    """What happened, for tests that look at the order of things."""

    actions: list[tuple[float, Action]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def of(self, kind: type[T]) -> list[T]:
        """The actions of one kind, in order."""
        return [action for _, action in self.actions if isinstance(action, kind)]


@dataclass(eq=False)
class _Worker:
    """A stage at work. over: the driver has heard its end, or is dead itself."""

    job: Job
    node_id: str
    host_id: str | None  # null for quantize
    kind: FailureKind | None  # how it will end
    ended: bool = False  # what it did lies in the storage
    gone: bool = False  # it went down before it ended, or hangs
    over: bool = False

    @property
    def stage(self) -> str:
        return "quantize" if self.host_id is None else "evaluate"

    @property
    def is_made(self) -> bool:
        """A checkpoint is there, but no result tells of it: that is the evaluation's to write."""
        return self.stage == "quantize" and self.ended and self.kind is None


class SimulatedCluster:
    """Runs a sweep to its end, with one driver after another where drivers die."""

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
        schedule: Callable[[list[Job], float], Schedule] = lambda jobs, idle: Schedule(jobs, idle_seconds=idle),
    ) -> None:
        """seconds(job, stage) and outcome(job, stage, number of the try) replace chance where a test needs to."""
        self.record = Record()
        self.now = 0.0
        self._random = random.Random(f"{seed} {faults} {jobs}")  # examples that differ at all differ in their chances
        self._faults = faults
        self._idle_seconds = idle_seconds
        self._new_schedule = schedule
        self._seconds = seconds or self._random_seconds
        self._outcome = outcome or self._random_outcome
        self._numbers = itertools.count()
        self._agenda: list[tuple[float, int, bool, Callable[[], None]]] = []  # when, order, whether the driver hears it
        # the cluster
        self._all_nodes = {node.id: node for node in nodes}
        self._there = dict(self._all_nodes)
        self._workers: dict[str, _Worker] = {}  # by cell
        self._nodes_of_hosts: dict[str, str] = {}
        self._living_hosts: set[str] = set()
        self._tries: Counter[tuple[str, str]] = Counter()
        # the storage
        self._jobs = {job.key: job for job in jobs}
        self._made = {job.quantize_key for job in jobs if job.checkpoint_ready}
        self._ends: dict[str, FailureKind | None] = {}
        self._left: set[str] = set()  # cells that another sweep's driver has
        # the driver; null between two
        self._schedule: Schedule | None = None
        self._rules: Rules
        self._deaf_until = 0.0

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> Record:
        """Until every cell has ended and every host is gone; raises AssertionError where a rule is broken."""
        self._plan_faults()
        self._begin()
        quiet_since = 0.0
        while self._schedule is None or not self._schedule.finished:
            if self._workers:
                quiet_since = self.now
            assert self.now - quiet_since < STUCK_SECONDS, f"stuck: {self._jobs.keys() - self._ends.keys()}"
            step = self._step(self.now - quiet_since)
            if self._agenda and self._agenda[0][0] <= self.now + step:
                when, number, heard, happen = heapq.heappop(self._agenda)
                if heard and when < self._deaf_until:
                    heapq.heappush(self._agenda, (self._deaf_until, number, heard, happen))
                    continue
                self.now = when
                happen()
            else:
                self.now += step
                if self.now >= self._deaf_until:
                    self._tell(Tick(self.now))
        assert self._ends.keys() | self._left == self._jobs.keys(), "finished before every cell had ended"
        assert not self._ends.keys() & self._left
        assert not self._workers, "finished with something at work"
        self.record.seconds = self.now
        return self.record

    @property
    def ends(self) -> dict[str, FailureKind | None]:
        """Cell -> the kind of its last failure, null where it succeeded."""
        return self._ends

    def _step(self, quiet_seconds: float) -> float:
        """The driver hears the clock, more seldom when all it can wait for is a node that may come back."""
        if self._workers:
            return 5.0
        return 1.0 if quiet_seconds < 50.0 else 25.0

    def _tell(self, event: Event) -> None:
        if self._schedule is None:
            return
        actions = self._schedule.handle(event)
        self.record.actions += [(self.now, action) for action in actions]
        self._rules.follow(event, actions)
        for action in actions:
            self._carry_out(action)
        assert self._schedule.num_running == len(self._workers) == self._rules.num_running
        assert self._schedule.finished == self._rules.finished

    def _at(self, seconds: float, happen: Callable[[], None], *, heard: bool = False) -> None:
        """heard: only the driver notices."""
        heapq.heappush(self._agenda, (self.now + seconds, next(self._numbers), heard, happen))

    # --- chance ------------------------------------------------------------------------------------------------------

    def _random_seconds(self, job: Job, stage: str) -> float:
        return round(self._random.uniform(0.1, self._faults.stage_seconds), 1)

    def _random_outcome(self, job: Job, stage: str, number: int) -> FailureKind | None:
        if self._random.random() < self._faults.failure_chance:
            return self._random.choice(self._faults.kinds)
        return None

    def _up_to(self, seconds: float) -> float:
        return self._random.uniform(0.0, seconds)

    def _plan_faults(self) -> None:
        movable = sorted(self._all_nodes.keys() - self._faults.fixed_nodes)
        for _ in range(self._faults.node_changes if movable else 0):
            node_id, away = self._random.choice(movable), self._up_to(self._faults.node_seconds)
            self._at(self._up_to(FAULT_SECONDS), lambda n=node_id, s=away: self._leave(n, s))  # type: ignore[misc]
        for _ in range(self._faults.restarts):
            self._at(self._up_to(FAULT_SECONDS), self._die)
        for _ in range(self._faults.stalls):
            self._at(self._up_to(FAULT_SECONDS), self._stall)

    # --- drivers -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A driver takes up what the storage says is unfinished: it knows nothing else of the one before."""
        for key in [k for k, kind in self._ends.items() if kind is FailureKind.WORKER_LOST]:
            del self._ends[key]
        jobs = [
            dataclasses.replace(job, checkpoint_ready=job.quantize_key in self._made)
            for job in self._jobs.values()
            if job.key not in self._ends and job.key not in self._left
        ]
        self._schedule = self._new_schedule(jobs, self._idle_seconds)
        self._rules = Rules(jobs, self._idle_seconds, self.now)
        self._tell(Tick(self.now))
        self._tell_nodes()

    def _die(self) -> None:
        """The driver goes down and everything of it that runs; what ended unheard lies in the storage."""
        if self._schedule is None:
            return
        self._count("driver dies")
        self._schedule = None
        for worker in self._workers.values():
            worker.over = True
            if worker.ended and worker.kind is not None:
                self._ends[worker.job.key] = worker.kind
            self._count("worker dies with its driver", not worker.ended)
            self._count("end that only the next driver sees", worker.ended)
        self._workers.clear()
        self._living_hosts.clear()
        self._nodes_of_hosts.clear()
        self._at(self._up_to(100.0), self._begin)

    def _stall(self) -> None:
        if self._schedule is not None:
            self._count("driver stalls")
            self._deaf_until = max(self._deaf_until, self.now + STALL_SECONDS)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _leave(self, node_id: str, away_seconds: float) -> None:
        if self._there.pop(node_id, None) is None:
            return
        self._count("node leaves")
        self._living_hosts -= {host_id for host_id, n in self._nodes_of_hosts.items() if n == node_id}
        for worker in self._workers.values():
            if worker.node_id == node_id:
                self._lose(worker)
        self._at(self._up_to(self._faults.delay_seconds), self._tell_nodes, heard=True)
        self._at(away_seconds, lambda: self._join(node_id))

    def _join(self, node_id: str) -> None:
        self._count("node joins")
        self._there[node_id] = self._all_nodes[node_id]
        self._at(self._up_to(self._faults.delay_seconds), self._tell_nodes, heard=True)

    def _tell_nodes(self) -> None:
        self._tell(Tick(self.now))
        self._tell(NodesChanged(tuple(self._there.values())))

    # --- workers -----------------------------------------------------------------------------------------------------

    def _carry_out(self, action: Action) -> None:
        match action:
            case StartQuantize(key, _, node_id):
                self._launch(_Worker(self._jobs[key], node_id, None, self._try(key, "quantize")))
            case StartHost(host_id, _, _, node_id):
                self._nodes_of_hosts[host_id] = node_id
                if node_id in self._there:
                    self._living_hosts.add(host_id)
            case StartEvaluate(key, host_id):
                node_id = self._nodes_of_hosts[host_id]
                self._launch(_Worker(self._jobs[key], node_id, host_id, self._try(key, "evaluate")))
            case StopHost(host_id):
                self._living_hosts.discard(host_id)
            case AttemptEnded(key, failure, final):
                assert key not in self._ends and key not in self._left
                self._count("attempt that is followed by another", not final)
                self._count("no node is large enough for a time", "no node" in failure.message)
                if final:
                    self._ends[key] = failure.kind
            case CellSucceeded(key):
                assert self._ends[key] is None

    def _try(self, key: str, stage: str) -> FailureKind | None:
        self._tries[key, stage] += 1
        return self._outcome(self._jobs[key], stage, self._tries[key, stage])

    def _launch(self, worker: _Worker) -> None:
        self._workers[worker.job.key] = worker
        if self._random.random() < self._faults.taken_chance:
            self._count("cell left to another sweep")
            self._at(0.0, lambda: self._leave_to_another(worker))
        elif worker.host_id is not None and self._random.random() < self._faults.host_death_chance:
            self._living_hosts.discard(worker.host_id)
            self._lose(worker)
        elif worker.node_id not in self._there or worker.host_id not in {None, *self._living_hosts}:
            self._lose(worker)
        elif self._random.random() < self._faults.hang_chance:
            self._count("worker hangs")
            self._at(TIME_LIMIT_SECONDS, lambda: self._abort(worker), heard=True)
        else:
            self._at(self._seconds(worker.job, worker.stage), lambda: self._end(worker))

    def _leave_to_another(self, worker: _Worker) -> None:
        if not worker.over:
            worker.over = True
            del self._workers[worker.job.key]
            self._left.add(worker.job.key)
            self._tell(LeftToAnother(worker.job.key))

    def _lose(self, worker: _Worker) -> None:
        """Its process is gone; whether it had ended is what the storage says."""
        self._count("worker dies", not worker.ended)
        worker.gone = True
        self._at(self._up_to(self._faults.delay_seconds), lambda: self._hear(worker, host_alive=False), heard=True)

    def _end(self, worker: _Worker) -> None:
        """The worker leaves in the storage what came of it, and answers."""
        if worker.over or worker.gone:
            return
        if worker.kind is FailureKind.WORKER_LOST:
            self._lose(worker)
            return
        worker.ended = True
        if worker.kind is not None:
            self._count(worker.kind if worker.kind in COUNTED else "other failure")
        if worker.kind is None and worker.stage == "quantize":
            self._made.add(worker.job.quantize_key)
        elif worker.kind is None:
            assert worker.job.key not in self._ends, f"{worker.job.key} was scored although it has ended"
            self._ends[worker.job.key] = None
        if self._random.random() < self._faults.lost_chance:
            self._count("reply lost")
            self._at(TIME_LIMIT_SECONDS, lambda: self._abort(worker), heard=True)
            return
        late = self._up_to(self._faults.slow_seconds)
        self._count("reply late", late > 0)
        self._at(late, lambda: self._hear(worker, host_alive=worker.kind not in EXITS), heard=True)

    def _abort(self, worker: _Worker) -> None:
        """The driver's time limit has passed."""
        if not worker.over and (not worker.ended or worker.is_made):
            worker.gone, worker.kind = True, FailureKind.TIMEOUT
        self._hear(worker, host_alive=False)

    def _hear(self, worker: _Worker, *, host_alive: bool) -> None:
        """Tell the driver of an end, once. What stands in the storage counts, however it was heard."""
        if worker.over:
            return
        worker.over = True
        key, kind = worker.job.key, worker.kind
        if worker.gone and kind is not FailureKind.TIMEOUT and (not worker.ended or worker.is_made):
            kind = FailureKind.WORKER_LOST
        failure = None if kind is None else Failure(worker.stage, kind, f"{kind} by chance")
        self._tell(Tick(self.now))
        del self._workers[key]
        if worker.host_id is None:
            self._tell(QuantizeEnded(key, failure))
        else:
            self._tell(EvaluateEnded(key, worker.host_id, failure, host_alive=host_alive))

    def _count(self, what: str, number: int = 1) -> None:
        if number:
            self.record.faults[what] += number
