"""Which stage runs where, and when: (state, event) -> actions. No clock, no Ray, no files.

The driver owns the queue. Order: 16-bit baselines first, then engines whose model has nothing left to quantize, then
quantization, then engines whose model will still get more cells; longest first within each. The first request that fits
nowhere reserves the node that can take it, so that small cells cannot starve one that needs several GPUs. An idle
engine host is given back as soon as a queued request does not fit beside it, and always after `idle_seconds`.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.placement import Placement
from orchestrator.retry import GiveUp, Ladder, Retry, decide
from workers.api import Failure, FailureKind

HOST_START_SECONDS = 60.0  # a second host for one model must have at least this much waiting work


@dataclass(frozen=True)
class Node:
    """What a node of the cluster offers."""

    id: str
    num_gpus: float
    num_cpus: float
    memory_gib: float


@dataclass(frozen=True)
class Job:
    """What scheduling must know of a cell. host_key: cells with the same one can share a warm engine.

    The ladders hold the placement to begin with and the larger ones to try after running out of memory.
    """

    key: str
    quantize_key: str
    host_key: str
    quantize: Ladder
    evaluate: Ladder
    quantize_seconds: float
    evaluate_seconds: float
    is_baseline: bool
    checkpoint_ready: bool


class Stage(enum.StrEnum):
    """The two stages of a cell."""

    QUANTIZE = "quantize"
    EVALUATE = "evaluate"


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodesChanged:
    """The cluster as it is now."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class QuantizeEnded:
    """A quantize stage came back; failure is null when the checkpoint is there."""

    key: str
    failure: Failure | None


@dataclass(frozen=True)
class EvaluateEnded:
    """An evaluation came back. host_alive is False when the host went down with it."""

    key: str
    host_id: str
    failure: Failure | None
    host_alive: bool = True


@dataclass(frozen=True)
class Tick:
    """Time has passed. now: seconds on any clock that only goes forward."""

    now: float


Event = NodesChanged | QuantizeEnded | EvaluateEnded | Tick


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartQuantize:
    """Run the quantize stage of a cell."""

    key: str
    placement: Placement
    node_id: str


@dataclass(frozen=True)
class StartHost:
    """Start an engine host."""

    host_id: str
    host_key: str
    placement: Placement
    node_id: str


@dataclass(frozen=True)
class StartEvaluate:
    """Score a cell on a host."""

    key: str
    host_id: str


@dataclass(frozen=True)
class StopHost:
    """Give an engine host's resources back."""

    host_id: str


@dataclass(frozen=True)
class AttemptEnded:
    """An attempt failed. final: no further one follows."""

    key: str
    failure: Failure
    final: bool


@dataclass(frozen=True)
class CellSucceeded:
    """The cell is done."""

    key: str


Action = StartQuantize | StartHost | StartEvaluate | StopHost | AttemptEnded | CellSucceeded


# --- state -----------------------------------------------------------------------------------------------------------


class _Phase(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass
class _Cell:
    job: Job
    phase: _Phase = _Phase.QUEUED
    stage: Stage = Stage.QUANTIZE
    failures: list[Failure] = field(default_factory=list)
    not_before: float = 0.0


@dataclass
class _Host:
    host_id: str
    host_key: str
    placement: Placement
    node_id: str
    cell: str | None = None
    idle_since: float = 0.0


@dataclass(frozen=True)
class _Request:
    rank: int
    seconds: float
    order: int
    placement: Placement
    cell: _Cell
    host_key: str | None  # null for a quantize request


class Schedule:
    """The state of a sweep's queue. `handle` is its only way in; equal events give equal actions."""

    def __init__(self, jobs: Iterable[Job], *, idle_seconds: float) -> None:
        self._cells = {job.key: _Cell(job, stage=_first_stage(job)) for job in jobs}
        self._order = {key: i for i, key in enumerate(self._cells)}
        self._ready = {job.job.quantize_key for job in self._cells.values() if job.job.checkpoint_ready}
        self._making: dict[str, str] = {}  # quantize_key -> cell at work on it
        self._tasks: dict[str, tuple[Placement, str]] = {}  # cell -> placement and node of its quantize task
        self._hosts: dict[str, _Host] = {}
        self._nodes: dict[str, Node] = {}
        self._idle_seconds = idle_seconds
        self._num_hosts_started = 0
        self._now = 0.0

    @property
    def finished(self) -> bool:
        """Whether every cell has ended and every host is gone."""
        return all(c.phase is _Phase.ENDED for c in self._cells.values()) and not self._hosts

    @property
    def num_running(self) -> int:
        return sum(c.phase is _Phase.RUNNING for c in self._cells.values())

    def handle(self, event: Event) -> list[Action]:
        """Take an event and say what to do next."""
        actions: list[Action] = []
        match event:
            case NodesChanged(nodes):
                self._nodes = {node.id: node for node in nodes}
            case QuantizeEnded(key, failure):
                self._quantize_ended(self._cells[key], failure, actions)
            case EvaluateEnded():
                self._evaluate_ended(event, actions)
            case Tick(now):
                self._now = max(self._now, now)
        self._dispatch(actions)
        return actions

    # --- ends --------------------------------------------------------------------------------------------------------

    def _quantize_ended(self, cell: _Cell, failure: Failure | None, actions: list[Action]) -> None:
        key = cell.job.quantize_key
        del self._tasks[cell.job.key], self._making[key]
        if failure is not None:
            self._failed(cell, failure, actions)
            return
        self._ready.add(key)
        cell.stage, cell.phase = Stage.EVALUATE, _Phase.QUEUED

    def _evaluate_ended(self, event: EvaluateEnded, actions: list[Action]) -> None:
        cell, host = self._cells[event.key], self._hosts[event.host_id]
        host.cell, host.idle_since = None, self._now
        if not event.host_alive:
            self._stop(host, actions)
        if event.failure is not None:
            self._failed(cell, event.failure, actions)
            return
        cell.phase = _Phase.ENDED
        actions.append(CellSucceeded(cell.job.key))

    def _failed(self, cell: _Cell, failure: Failure, actions: list[Action]) -> None:
        cell.failures.append(failure)
        match decide(cell.failures, self._ladder(cell)):
            case Retry(delay_seconds=delay):
                actions.append(AttemptEnded(cell.job.key, failure, final=False))
                cell.not_before = self._now + delay
                cell.phase, cell.stage = _Phase.QUEUED, self._stage_now(cell)
            case GiveUp():
                self._give_up(cell, failure, actions)

    def _give_up(self, cell: _Cell, failure: Failure, actions: list[Action]) -> None:
        """End the cell, and with it every cell that waits for the same checkpoint."""
        hopeless = [cell]
        if cell.stage is Stage.QUANTIZE:
            hopeless += [
                c
                for c in self._cells.values()
                if c is not cell and c.phase is _Phase.QUEUED and c.job.quantize_key == cell.job.quantize_key
            ]
        for one in hopeless:
            one.phase = _Phase.ENDED
            actions.append(AttemptEnded(one.job.key, failure, final=True))

    def _stage_now(self, cell: _Cell) -> Stage:
        return Stage.EVALUATE if cell.job.quantize_key in self._ready else Stage.QUANTIZE

    def _ladder(self, cell: _Cell) -> Ladder:
        return cell.job.quantize if cell.stage is Stage.QUANTIZE else cell.job.evaluate

    def _placement(self, cell: _Cell) -> Placement:
        """One rung up for each time this stage ran out of memory."""
        ladder = self._ladder(cell)
        stage = cell.stage.value
        rung = sum(f.kind is FailureKind.OUT_OF_MEMORY and f.stage == stage for f in cell.failures)
        return ladder[min(rung, len(ladder) - 1)]

    # --- dispatch ----------------------------------------------------------------------------------------------------

    def _dispatch(self, actions: list[Action]) -> None:
        self._feed_idle_hosts(actions)
        free = self._free()
        reserved: str | None = None
        for request in self._requests():
            node = _best_fit(request.placement, free, reserved)
            while node is None and (host := self._superfluous_host(request)) is not None:
                self._stop(host, actions)
                _give(free, host.node_id, host.placement)
                node = _best_fit(request.placement, free, reserved)
            if node is not None:
                _take(free, node, request.placement)
                self._start(request, node, actions)
            elif reserved is None:
                reserved = self._node_to_reserve(request.placement, free)
        self._release_idle_hosts(actions)

    def _feed_idle_hosts(self, actions: list[Action]) -> None:
        for host in [h for h in self._hosts.values() if h.cell is None]:
            ready = [c for c in self._evaluable() if self._fits_host(c, host)]
            if ready:
                self._evaluate(min(ready, key=self._evaluation_order), host, actions)

    def _evaluation_order(self, cell: _Cell) -> tuple[bool, float, int]:
        return (not cell.job.is_baseline, -cell.job.evaluate_seconds, self._order[cell.job.key])

    def _fits_host(self, cell: _Cell, host: _Host) -> bool:
        """A cell that ran out of memory needs a larger host than the one it had."""
        return cell.job.host_key == host.host_key and self._placement(cell) == host.placement

    def _evaluable(self) -> list[_Cell]:
        """Queued cells whose checkpoint is there."""
        found = []
        for cell in self._cells.values():
            if cell.phase is _Phase.QUEUED and cell.not_before <= self._now:
                if cell.stage is Stage.QUANTIZE and cell.job.quantize_key in self._ready:
                    cell.stage = Stage.EVALUATE
                if cell.stage is Stage.EVALUATE:
                    found.append(cell)
        return found

    def _requests(self) -> list[_Request]:
        """Everything that wants resources now, in the order in which it may take them."""
        requests = [*self._quantize_requests(), *self._host_requests()]
        return sorted(requests, key=lambda r: (r.rank, -r.seconds, r.order))

    def _quantize_requests(self) -> list[_Request]:
        wanted: dict[str, _Cell] = {}
        for cell in self._cells.values():
            if cell.phase is _Phase.QUEUED and cell.stage is Stage.QUANTIZE and cell.not_before <= self._now:
                key = cell.job.quantize_key
                if key not in self._making and key not in self._ready:
                    wanted.setdefault(key, cell)
        return [
            _Request(
                0 if c.job.is_baseline else 2,
                c.job.quantize_seconds,
                self._order[c.job.key],
                self._placement(c),
                c,
                None,
            )
            for c in wanted.values()
        ]

    def _host_requests(self) -> list[_Request]:
        unfinished = {
            c.job.host_key
            for c in self._cells.values()
            if c.phase is not _Phase.ENDED and c.stage is Stage.QUANTIZE and not c.job.is_baseline
        }
        waiting: dict[tuple[str, Placement], list[_Cell]] = defaultdict(list)
        for cell in self._evaluable():
            waiting[cell.job.host_key, self._placement(cell)].append(cell)
        requests = []
        for (host_key, placement), cells in waiting.items():
            seconds = sum(c.job.evaluate_seconds for c in cells)
            running = sum(h.host_key == host_key and h.placement == placement for h in self._hosts.values())
            if running and seconds / (running + 1) < HOST_START_SECONDS:
                continue
            first = min(cells, key=self._evaluation_order)
            rank = 0 if first.job.is_baseline else 3 if host_key in unfinished else 1
            requests.append(_Request(rank, seconds, self._order[first.job.key], placement, first, host_key))
        return requests

    def _start(self, request: _Request, node_id: str, actions: list[Action]) -> None:
        cell = request.cell
        if request.host_key is None:
            cell.phase = _Phase.RUNNING
            self._making[cell.job.quantize_key] = cell.job.key
            self._tasks[cell.job.key] = (request.placement, node_id)
            actions.append(StartQuantize(cell.job.key, request.placement, node_id))
            return
        self._num_hosts_started += 1
        host = _Host(f"host-{self._num_hosts_started}", request.host_key, request.placement, node_id)
        self._hosts[host.host_id] = host
        actions.append(StartHost(host.host_id, host.host_key, host.placement, node_id))
        self._evaluate(cell, host, actions)

    def _evaluate(self, cell: _Cell, host: _Host, actions: list[Action]) -> None:
        cell.phase, host.cell = _Phase.RUNNING, cell.job.key
        actions.append(StartEvaluate(cell.job.key, host.host_id))

    # --- hosts and capacity ------------------------------------------------------------------------------------------

    def _superfluous_host(self, request: _Request) -> _Host | None:
        """An idle host on a node that could take the request once idle hosts there are gone."""
        for node_id in self._nodes:
            idle = [h for h in self._hosts.values() if h.node_id == node_id and h.cell is None]
            room = self._free().get(node_id)
            if not idle or room is None:
                continue
            for host in idle:
                room = _plus(room, host.placement)
            if _fits(request.placement, room):
                return idle[0]
        return None

    def _release_idle_hosts(self, actions: list[Action]) -> None:
        all_ended = all(c.phase is _Phase.ENDED for c in self._cells.values())
        for host in list(self._hosts.values()):
            if host.cell is None and (all_ended or self._now - host.idle_since >= self._idle_seconds):
                self._stop(host, actions)

    def _stop(self, host: _Host, actions: list[Action]) -> None:
        del self._hosts[host.host_id]
        actions.append(StopHost(host.host_id))

    def _free(self) -> dict[str, Node]:
        free = dict(self._nodes)
        used = [*self._tasks.values(), *((h.placement, h.node_id) for h in self._hosts.values())]
        for placement, node_id in used:
            if node_id in free:
                _take(free, node_id, placement)
        return free

    def _node_to_reserve(self, placement: Placement, free: dict[str, Node]) -> str | None:
        able = [n for n in self._nodes.values() if _fits(placement, n)]
        return max(able, key=lambda n: (free[n.id].num_gpus, free[n.id].num_cpus, n.id)).id if able else None


def _first_stage(job: Job) -> Stage:
    return Stage.EVALUATE if job.checkpoint_ready else Stage.QUANTIZE


def _fits(placement: Placement, room: Node) -> bool:
    return (
        placement.num_gpus <= room.num_gpus
        and placement.num_cpus <= room.num_cpus
        and placement.memory_gib <= room.memory_gib
    )


def _best_fit(placement: Placement, free: dict[str, Node], reserved: str | None) -> str | None:
    """The fitting node with the fewest free GPUs, so that whole nodes stay open for gangs."""
    able = [n for n in free.values() if n.id != reserved and _fits(placement, n)]
    return min(able, key=lambda n: (n.num_gpus, n.num_cpus, n.id)).id if able else None


def _plus(room: Node, placement: Placement, sign: int = 1) -> Node:
    return replace(
        room,
        num_gpus=room.num_gpus + sign * placement.num_gpus,
        num_cpus=room.num_cpus + sign * placement.num_cpus,
        memory_gib=room.memory_gib + sign * placement.memory_gib,
    )


def _take(free: dict[str, Node], node_id: str, placement: Placement) -> None:
    free[node_id] = _plus(free[node_id], placement, -1)


def _give(free: dict[str, Node], node_id: str, placement: Placement) -> None:
    if node_id in free:
        free[node_id] = _plus(free[node_id], placement)
