"""Which stage runs where, and when: (state, event) -> actions. No clock, no Ray, no files.

The driver owns the queue. Order: 16-bit baselines first, then engines whose model has nothing left to quantize, then
quantization, then engines whose model will still get more cells; within each the largest first, then the longest.

The first request that fits nowhere and has no host either reserves the node that is nearest to having room: nothing
behind it starts there and smaller hosts there get no more cells, so that small cells cannot starve one that needs
several GPUs. An engine host without waiting cells is given back as soon as a queued request does not fit beside it, and
always after `idle_seconds`.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.capacity import Capacity
from orchestrator.events import (
    Action,
    AttemptEnded,
    CellSucceeded,
    EvaluateEnded,
    Event,
    Job,
    LeftToAnother,
    NodesChanged,
    QuantizeEnded,
    Stage,
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.placement import Placement
from orchestrator.retry import GiveUp, Retry, decide
from orchestrator.work import Kind, Queue, Work
from workers.api import Failure, FailureKind

HOST_START_SECONDS = 60.0  # a second host for one model must have at least this much waiting work
HOMELESS_SECONDS = 600.0  # how long work waits for a node that is large enough
SUSPECT_KINDS = (  # a host is not trusted after these
    FailureKind.ENGINE,
    FailureKind.INTERNAL,
    FailureKind.WORKER_LOST,
    FailureKind.OUT_OF_MEMORY,
    FailureKind.CUDA,
)


@dataclass(eq=False)
class _Host:
    """An engine host. work: what it scores now. lost: its node went away; it only waits for the end of its work."""

    host_id: str
    kind: Kind
    node_id: str
    work: Work | None = None
    idle_since: float = 0.0
    lost: bool = False


@dataclass(frozen=True)
class _Reservation:
    """A node kept for the first request that fitted nowhere, and what that needs."""

    node_id: str
    placement: Placement


class Schedule:
    """The state of a sweep's queue. `handle` is its only way in; equal events give equal actions."""

    def __init__(self, jobs: Iterable[Job], *, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._now = 0.0
        self._capacity = Capacity()
        self._queues: dict[Kind, Queue] = {}  # none of them empty
        self._delayed: list[tuple[float, int, Work]] = []  # a heap: not before when
        self._tasks: dict[str, tuple[Work, str]] = {}  # key -> quantize work and its node
        self._hosts: dict[str, _Host] = {}
        self._failures: defaultdict[str, list[Failure]] = defaultdict(list)  # by the cell whose attempt it was
        self._homeless: dict[Placement, float] = {}  # placements no node is large enough for, and since when
        self._unmade: Counter[str] = Counter()  # host_key -> its cells that still wait for a checkpoint
        self._num_hosts_started = 0
        cells = list(jobs)
        self._order = {job.key: i for i, job in enumerate(cells)}
        self._num_open = len(cells)
        self._enqueue_first(cells)

    @property
    def finished(self) -> bool:
        """Whether every cell has ended and every host is gone."""
        return not self._num_open and not self._hosts

    @property
    def num_running(self) -> int:
        """Stages at work."""
        return len(self._tasks) + sum(host.work is not None for host in self._hosts.values())

    def handle(self, event: Event) -> list[Action]:
        """Take an event and say what to do next. Every start is answered once."""
        actions: list[Action] = []
        match event:
            case NodesChanged(nodes):
                self._capacity.set_nodes(nodes)
                self._drop_lost_hosts(actions)
            case QuantizeEnded(key, failure):
                self._quantize_ended(key, failure, actions)
            case EvaluateEnded():
                self._evaluate_ended(event, actions)
            case LeftToAnother(key):
                self._left_to_another(key, actions)
            case Tick(now):
                self._now = max(self._now, now)
                while self._delayed and self._delayed[0][0] <= self._now:
                    self._enqueue(heapq.heappop(self._delayed)[-1])
        self._dispatch(actions)
        if self._release_idle_hosts(actions):
            self._dispatch(actions)
        return actions

    # --- work --------------------------------------------------------------------------------------------------------

    def _enqueue_first(self, cells: list[Job]) -> None:
        waiting: defaultdict[str, list[Job]] = defaultdict(list)
        for job in cells:
            if job.checkpoint_ready:
                self._enqueue(Work(Stage.EVALUATE, [job]))
            else:
                self._unmade[job.host_key] += 1
                waiting[job.quantize_key].append(job)
        for sharing in waiting.values():
            self._enqueue(Work(Stage.QUANTIZE, sharing))

    def _enqueue(self, work: Work) -> None:
        kind = (work.host_key, self._placement(work))
        self._queues.setdefault(kind, Queue(kind)).push(work, self._order[work.key])

    def _placement(self, work: Work) -> Placement:
        """One rung up for each time this stage ran out of memory."""
        failures = self._failures[work.key]
        rung = sum(f.kind is FailureKind.OUT_OF_MEMORY and f.stage == work.stage for f in failures)
        return work.ladder[rung]

    def _quantize_ended(self, key: str, failure: Failure | None, actions: list[Action]) -> None:
        work, node_id = self._tasks.pop(key)
        self._capacity.release(key, node_id)
        if failure is not None:
            self._failed(work, failure, actions)
            return
        for job in work.cells:
            self._unmade[job.host_key] -= 1
            self._enqueue(Work(Stage.EVALUATE, [job]))

    def _evaluate_ended(self, event: EvaluateEnded, actions: list[Action]) -> None:
        host = self._hosts[event.host_id]
        work, host.work, host.idle_since = host.work, None, self._now
        assert work is not None and work.key == event.key, f"{event} answers no start"
        suspect = event.failure is not None and event.failure.kind in SUSPECT_KINDS
        if host.lost or suspect or not event.host_alive:
            self._stop(host, actions)
        if event.failure is not None:
            self._failed(work, event.failure, actions)
            return
        self._num_open -= 1
        actions.append(CellSucceeded(work.key))

    def _left_to_another(self, key: str, actions: list[Action]) -> None:
        """Forget the cell; others that wait for the same checkpoint go on without it."""
        self._num_open -= 1
        if key in self._tasks:
            work, node_id = self._tasks.pop(key)
            self._capacity.release(key, node_id)
            self._unmade[work.cells[0].host_key] -= 1
            if len(work.cells) > 1:
                self._enqueue(Work(work.stage, work.cells[1:]))
            return
        host = next(h for h in self._hosts.values() if h.work is not None and h.work.key == key)
        host.work, host.idle_since = None, self._now
        if host.lost:
            self._stop(host, actions)

    def _failed(self, work: Work, failure: Failure, actions: list[Action]) -> None:
        self._failures[work.key].append(failure)
        match decide(self._failures[work.key], work.ladder):
            case Retry(delay_seconds=delay):
                actions.append(AttemptEnded(work.key, failure, final=False))
                if delay > 0:
                    heapq.heappush(self._delayed, (self._now + delay, self._order[work.key], work))
                else:
                    self._enqueue(work)
            case GiveUp():
                self._give_up(work, failure, actions)

    def _give_up(self, work: Work, failure: Failure, actions: list[Action]) -> None:
        """End the work's cells: those that wait for one checkpoint fail together."""
        for job in work.cells:
            self._num_open -= 1
            if work.stage is Stage.QUANTIZE:
                self._unmade[job.host_key] -= 1
            actions.append(AttemptEnded(job.key, failure, final=True))

    # --- dispatch ----------------------------------------------------------------------------------------------------

    def _dispatch(self, actions: list[Action]) -> None:
        """Serve the queues in order, one head at a time, until nothing more fits."""
        in_order = [(self._precedence(queue), kind) for kind, queue in self._queues.items()]
        heapq.heapify(in_order)
        reservation: _Reservation | None = None
        unfit: set[Placement] = set()  # what this pass has found no room for, it will not find room for
        makes_room = False
        while in_order:
            _, kind = heapq.heappop(in_order)
            queue, placement = self._queues[kind], kind[1]
            if (host := self._idle_host(kind, reservation)) is not None:
                self._evaluate(queue.pop(), host, actions)
            elif not self._wants_node(queue):
                continue
            elif placement not in unfit and (node_id := self._room_for(placement, reservation, actions)) is not None:
                self._start(queue.pop(), kind, node_id, actions)
            else:
                unfit.add(placement)
                if reservation is None and not self._num_hosts(kind):
                    reservation = self._reserve(placement)
                continue
            if queue.heap:
                heapq.heappush(in_order, (self._precedence(queue), kind))
            else:
                del self._queues[kind]
                makes_room |= bool(unfit) and self._idle_host(kind, None) is not None
        if makes_room:  # nobody waits any more for a host that stood in the way
            self._dispatch(actions)
        else:
            self._give_up_homeless(actions)

    def _precedence(self, queue: Queue) -> tuple[float, ...]:
        host_key, placement = queue.kind
        if queue.head.is_baseline:
            rank = 0
        elif host_key is None:
            rank = 2
        else:
            rank = 3 if self._unmade[host_key] else 1
        num_gpus, memory_gib = _size(placement)
        seconds = queue.head.seconds if host_key is None else queue.seconds
        return (rank, -num_gpus, -memory_gib, -seconds, queue.head_order)

    def _idle_host(self, kind: Kind, reservation: _Reservation | None) -> _Host | None:
        """A warm host of this kind, unless it stands where something larger waits for room."""
        kept = None
        if reservation is not None and _size(reservation.placement) > _size(kind[1]):
            kept = reservation.node_id
        idle = (h for h in self._hosts.values() if h.kind == kind and h.work is None and h.node_id != kept)
        return next(idle, None)

    def _wants_node(self, queue: Queue) -> bool:
        """Whoever has no host does; one who has, only when another is worth its start."""
        num_hosts = self._num_hosts(queue.kind)
        return not num_hosts or queue.seconds / (num_hosts + 1) >= HOST_START_SECONDS

    def _num_hosts(self, kind: Kind) -> int:
        return sum(host.kind == kind and not host.lost for host in self._hosts.values())

    def _room_for(self, placement: Placement, reservation: _Reservation | None, actions: list[Action]) -> str | None:
        """A node with room; where there is none, idle hosts are given back if that makes some."""
        kept = reservation.node_id if reservation is not None else None
        node_id = self._capacity.best_fit(placement, but=kept)
        if node_id is not None:
            return node_id
        in_the_way: defaultdict[str, list[_Host]] = defaultdict(list)
        for host in self._hosts.values():
            if host.work is None and host.node_id != kept and self._may_give_back(host, placement):
                in_the_way[host.node_id].append(host)
                if self._capacity.fits_without(placement, host.node_id, {h.host_id for h in in_the_way[host.node_id]}):
                    for idle in in_the_way[host.node_id]:
                        self._stop(idle, actions)
                    return host.node_id
        return None

    def _may_give_back(self, host: _Host, placement: Placement) -> bool:
        """A host with cells waiting for it makes room only for something larger."""
        return host.kind not in self._queues or _size(placement) > _size(host.kind[1])

    def _reserve(self, placement: Placement) -> _Reservation | None:
        node_id = self._capacity.emptiest(placement)
        return _Reservation(node_id, placement) if node_id is not None else None

    def _start(self, work: Work, kind: Kind, node_id: str, actions: list[Action]) -> None:
        host_key, placement = kind
        if host_key is None:
            self._capacity.take(work.key, placement, node_id)
            self._tasks[work.key] = (work, node_id)
            actions.append(StartQuantize(work.key, placement, node_id))
            return
        self._num_hosts_started += 1
        host = _Host(f"host-{self._num_hosts_started}", kind, node_id)
        self._capacity.take(host.host_id, placement, node_id)
        self._hosts[host.host_id] = host
        actions.append(StartHost(host.host_id, host_key, placement, node_id))
        self._evaluate(work, host, actions)

    def _evaluate(self, work: Work, host: _Host, actions: list[Action]) -> None:
        host.work = work
        actions.append(StartEvaluate(work.key, host.host_id))

    # --- hosts and nodes that go ------------------------------------------------------------------------------------

    def _drop_lost_hosts(self, actions: list[Action]) -> None:
        for host in [h for h in self._hosts.values() if h.node_id not in self._capacity]:
            host.lost = True
            if host.work is None:
                self._stop(host, actions)

    def _release_idle_hosts(self, actions: list[Action]) -> bool:
        """Those that have been idle too long, and all of them at the end. Says whether there were any."""
        idle = [host for host in self._hosts.values() if host.work is None]
        released = [h for h in idle if not self._num_open or self._now - h.idle_since >= self._idle_seconds]
        for host in released:
            self._stop(host, actions)
        return bool(released)

    def _stop(self, host: _Host, actions: list[Action]) -> None:
        del self._hosts[host.host_id]
        self._capacity.release(host.host_id, host.node_id)
        actions.append(StopHost(host.host_id))

    def _give_up_homeless(self, actions: list[Action]) -> None:
        """Work for which no node is large enough waits for one to come, but not for ever."""
        wanted = {kind[1] for kind in self._queues}
        since = {p: self._homeless.get(p, self._now) for p in wanted if self._capacity.emptiest(p) is None}
        self._homeless = since
        for kind in [k for k in self._queues if self._now - since.get(k[1], self._now) >= HOMELESS_SECONDS]:
            for *_, work in self._queues.pop(kind).heap:
                self._give_up(work, _homeless(work.stage, kind[1]), actions)


def _homeless(stage: Stage, placement: Placement) -> Failure:
    return Failure(
        stage,
        FailureKind.WORKER_LOST,
        f"for {HOMELESS_SECONDS:.0f} s no node of the cluster has had {placement.num_gpus} GPUs, {placement.num_cpus} "
        f"CPUs and {placement.memory_gib:g} GiB of host memory; start one and run the sweep again",
    )


def _size(placement: Placement) -> tuple[int, float]:
    """What is hard to find room for: GPUs, and without them host memory."""
    return (placement.num_gpus, 0.0 if placement.num_gpus else placement.memory_gib)
