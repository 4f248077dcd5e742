"""What schedule.py promises, held against every event and every action of one driver.

An action that breaks a promise fails where it happens, and so does one that should have come and did not.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

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
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.placement import Placement
from tests.orchestrator.scheduling_model import Host, Kind, Model, Rooms, Size, Stage, fits, negative, size
from workers.api import Failure, FailureKind

RETRIES = {FailureKind.TRANSIENT: 3, FailureKind.WORKER_LOST: 2}
FIRST_DELAY_SECONDS = 10.0
HOST_START_SECONDS = 60.0
HOMELESS_SECONDS = 600.0
NOT_TRUSTED = (
    FailureKind.ENGINE,
    FailureKind.INTERNAL,
    FailureKind.WORKER_LOST,
    FailureKind.OUT_OF_MEMORY,
    FailureKind.CUDA,
)
TINY = 1e-6  # sums of seconds and of GiB may come out differently here


@dataclass(frozen=True)
class _Start:
    """A start, what was free before it and before the hosts that were given back for it, and what it could have had."""

    rank: tuple[float, ...]
    size: Size
    node_id: str
    is_new: bool  # it took room; otherwise it went to a warm host
    rooms: Rooms
    idle: tuple[Host, ...]  # warm hosts of its kind that were passed over


class Rules:
    """The promises to one driver. Every method raises AssertionError where one is broken."""

    def __init__(self, jobs: list[Job], idle_seconds: float, now: float) -> None:
        self._model = Model(jobs, now)
        self._idle_seconds = idle_seconds
        self._open = {job.key for job in jobs}
        self._failures: defaultdict[str, list[FailureKind]] = defaultdict(list)
        self._homeless: dict[Placement, float] = {}  # wanted, and no node is large enough: since when
        self._nodeless = {p: now for job in jobs for p in (*job.quantize, *job.evaluate)}  # since when, wanted or not
        self._expected: list[Action] = []

    def follow(self, event: Event, actions: list[Action]) -> None:
        """An event was told, and these actions were the answer."""
        self._event(event)
        starts: list[_Start] = []
        before: Rooms | None = None  # what was free before the hosts that are given back for the next start
        for number, action in enumerate(actions):
            match action:
                case StopHost(host_id):
                    before = before or self._model.rooms()
                    self._stopped(self._model.hosts[host_id], actions[number + 1 :])
                case StartQuantize(key, placement, node_id):
                    stage = self._model.making(key)
                    starts.append(self._start(stage, node_id, before or self._model.rooms()))
                    self._took(key, stage, placement, node_id)
                    before = None
                case StartHost(host_id, host_key, placement, node_id):
                    told = actions[number + 1]
                    assert isinstance(told, StartEvaluate) and told.host_id == host_id, f"{host_id} got no cell"
                    stage = self._model.scores[told.key]
                    starts.append(self._start(stage, node_id, before or self._model.rooms()))
                    assert stage.kind == (host_key, placement) and host_id not in self._model.hosts
                    self._check_worth_a_host(stage.kind)
                    self._took(host_id, stage, placement, node_id)
                    self._model.hosts[host_id] = Host(host_id, stage.kind, node_id)
                    before = None
                case StartEvaluate(key, host_id):
                    host, stage = self._model.hosts[host_id], self._model.scores[key]
                    if not isinstance(actions[number - 1], StartHost):
                        starts.append(self._start(stage, host.node_id, self._model.rooms(), host))
                    assert host.stage is None and host.trusted and host.kind == stage.kind, f"{action} on {host}"
                    self._begin(stage)
                    host.stage = stage
                case AttemptEnded() | CellSucceeded():
                    self._ended(action)
                    before = None
        assert not self._expected, f"{event} should have led to {self._expected}, not only {actions}"
        self._check_homes()
        self._check_idle_hosts()
        self._check_order(starts)

    @property
    def num_running(self) -> int:
        """Stages at work."""
        return sum(stage.state == "running" for stage in self._model.stages)

    @property
    def finished(self) -> bool:
        """Whether every cell has ended and every host is gone; then nothing is held any more."""
        return not self._open and not self._model.hosts

    # --- events ------------------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        match event:
            case Tick(now):
                self._model.now = now
            case NodesChanged(nodes):
                self._nodeless = {
                    p: self._model.now if self._model.able(p) else since for p, since in self._nodeless.items()
                }
                self._model.nodes = {node.id: node for node in nodes}
                for host in self._model.hosts.values():
                    host.trusted = host.trusted and host.node_id in self._model.nodes
            case QuantizeEnded(key, failure):
                stage = self._model.making(key)
                del self._model.held[key]
                self._stage_ended(stage, failure)
                if failure is None:
                    for job in stage.jobs:
                        self._model.scores[job.key].state = "waiting"
            case EvaluateEnded(key, host_id, failure, host_alive):
                host = self._model.hosts[host_id]
                host.stage, host.idle_since = None, self._model.now
                suspect = failure is not None and failure.kind in NOT_TRUSTED
                host.trusted = host.trusted and host_alive and not suspect
                self._stage_ended(self._model.scores[key], failure)
                if failure is None:
                    self._expected = [CellSucceeded(key)]
            case LeftToAnother(key):
                self._left_to_another(key)

    def _stage_ended(self, stage: Stage, failure: Failure | None) -> None:
        assert stage.state == "running"
        stage.state = "over"
        if failure is None:
            return
        kinds = self._failures[stage.key]
        kinds.append(failure.kind)
        count = kinds.count(failure.kind)
        if failure.kind is FailureKind.OUT_OF_MEMORY and stage.rung + 1 < len(stage.ladder):
            stage.rung += 1
            stage.state, stage.not_before = "waiting", self._model.now
        elif count <= RETRIES.get(failure.kind, 0):
            stage.state, stage.not_before = "waiting", self._model.now + FIRST_DELAY_SECONDS * 2 ** (count - 1)
        if stage.state == "waiting":
            self._expected = [AttemptEnded(stage.key, failure, final=False)]
        else:
            self._expected = [AttemptEnded(job.key, failure, final=True) for job in stage.jobs]

    def _left_to_another(self, key: str) -> None:
        """The cell is nobody's any more; the next of those that wait for the same checkpoint makes it."""
        self._open.remove(key)
        (stage,) = [s for s in self._model.stages if s.state == "running" and s.key == key]
        stage.state = "over"
        for host in self._model.hosts.values():
            if host.stage is stage:
                host.stage, host.idle_since = None, self._model.now
        if stage.name == "quantize":
            del self._model.held[key]
            rest = stage.jobs[1:]
            if rest:
                self._model.checkpoints[rest[0].quantize_key] = Stage("quantize", rest, "waiting")

    # --- actions -----------------------------------------------------------------------------------------------------

    def _start(self, stage: Stage, node_id: str, rooms: Rooms, warm: Host | None = None) -> _Start:
        idle = tuple(
            h for h in self._model.hosts.values() if h.kind == stage.kind and h.stage is None and h is not warm
        )
        rank = (0,) if stage.jobs[0].is_baseline else self._model.rank(stage.kind)
        return _Start(rank, size(stage.kind[1]), node_id, warm is None, rooms, idle if warm is None else ())

    def _took(self, holder: str, stage: Stage, placement: Placement, node_id: str) -> None:
        assert placement == stage.kind[1], f"{placement} for {stage}"
        assert node_id in self._model.nodes, f"{holder} was started on a node that is not there"
        assert holder not in self._model.held
        self._model.held[holder] = (node_id, placement)
        assert min(self._model.rooms()[node_id]) >= -TINY, f"{node_id} is oversubscribed: {self._model.held}"
        if stage.name == "quantize":
            self._begin(stage)

    def _begin(self, stage: Stage) -> None:
        assert stage.state == "waiting", f"{stage} was started"
        assert self._model.now >= stage.not_before - TINY, f"{stage} was started at {self._model.now}"
        assert self._open >= {job.key for job in stage.jobs}
        stage.state = "running"

    def _stopped(self, host: Host, later: list[Action]) -> None:
        assert host.stage is None, f"{host} was stopped at work"
        follows = next((a for a in later if not isinstance(a, StopHost)), None)
        makes_room = False
        if isinstance(follows, StartQuantize | StartHost) and follows.node_id == host.node_id:
            makes_room = host.kind not in self._model.waiting() or size(follows.placement) > size(host.kind[1])
        expired = self._model.now - host.idle_since >= self._idle_seconds - TINY
        last = not self._open - {a.key for a in later if isinstance(a, AttemptEnded | CellSucceeded)}
        assert not host.trusted or makes_room or expired or last, f"{host} was stopped for no reason"
        del self._model.hosts[host.host_id], self._model.held[host.host_id]

    def _ended(self, action: AttemptEnded | CellSucceeded) -> None:
        if action in self._expected:
            self._expected.remove(action)
        else:
            assert isinstance(action, AttemptEnded) and action.final, f"{action}, expected {self._expected}"
            self._gave_up_homeless(action)
        if isinstance(action, CellSucceeded) or action.final:
            assert action.key in self._open, f"{action.key} ended twice"
            self._open.remove(action.key)

    def _gave_up_homeless(self, action: AttemptEnded) -> None:
        assert action.failure.kind is FailureKind.WORKER_LOST
        (stage,) = [
            s for s in self._model.stages if s.name == action.failure.stage and action.key in [j.key for j in s.jobs]
        ]
        since = self._nodeless[stage.kind[1]]
        assert stage.state in ("waiting", "over") and not self._model.able(stage.kind[1]), (
            f"{action}: {stage} has a home"
        )
        assert self._model.now - since >= HOMELESS_SECONDS - TINY, f"{action}: no node only since {since}"
        stage.state = "over"

    # --- what must hold after every event ----------------------------------------------------------------------------

    def _check_worth_a_host(self, kind: Kind) -> None:
        """Called before its first cell is taken out of the queue."""
        num_hosts = self._model.num_hosts(kind)
        seconds = sum(stage.seconds for stage in self._model.waiting()[kind])
        assert not num_hosts or seconds / (num_hosts + 1) >= HOST_START_SECONDS - TINY, f"a host too many for {kind}"

    def _check_homes(self) -> None:
        """Work that no node is large enough for is given up after a time, and not before."""
        wanted = {kind[1] for kind in self._model.waiting()}
        self._homeless = {p: self._homeless.get(p, self._model.now) for p in wanted if not self._model.able(p)}
        late = [p for p, since in self._homeless.items() if self._model.now - since > HOMELESS_SECONDS + TINY]
        assert not late, f"nobody gave up {late}"

    def _check_idle_hosts(self) -> None:
        for host in self._model.hosts.values():
            if host.stage is None:
                assert host.trusted, f"{host} is kept although it went down"
                assert self._model.now - host.idle_since < self._idle_seconds + TINY, f"{host} has been idle too long"
                assert self._open, f"{host} is kept although every cell has ended"

    def _check_order(self, starts: list[_Start]) -> None:
        """Whatever fits is started, the first in order first; only one node is kept, for the first that fits nowhere.

        That is the first request without any host that some node is large enough for; the node is the one with most
        free when it is that request's turn.
        """
        waiting = self._model.waiting()
        order = {kind: self._model.precedence(kind, stages) for kind, stages in waiting.items()}
        homeable = [kind for kind in waiting if not self._model.num_hosts(kind) and self._model.able(kind[1])]
        first = min(homeable, key=order.__getitem__, default=None)
        kept, kept_size = None, (math.inf, math.inf)
        if first is not None:
            behind = [s for s in starts if (*s.rank, *negative(s.size)) > order[first][:3]]
            rooms = behind[0].rooms if behind else self._model.rooms()
            kept = max(self._model.able(first[1]), key=lambda node_id: (*rooms[node_id], node_id))
            kept_size = size(first[1])
            for start in behind:
                assert start.node_id != kept or (not start.is_new and start.size >= kept_size), f"{first} is overtaken"
        for start in starts:
            assert all(h.node_id == kept and start.size < kept_size for h in start.idle), f"{start}: one is warm"
        for kind in waiting:
            reserved = kept if first is not None and order[kind] > order[first] else None
            self._check_must_wait(kind, waiting, starts, reserved, kept_size, order[kind])

    def _check_must_wait(
        self,
        kind: Kind,
        waiting: dict[Kind, list[Stage]],
        starts: list[_Start],
        kept: str | None,
        kept_size: Size,
        order: tuple[float, ...],
    ) -> None:
        own_size = size(kind[1])
        for host in self._model.hosts.values():
            free = host.kind == kind and host.stage is None
            assert not free or (host.node_id == kept and own_size < kept_size), f"{kind} waits beside {host}"
        num_hosts = self._model.num_hosts(kind)
        if num_hosts and sum(s.seconds for s in waiting[kind]) / (num_hosts + 1) < HOST_START_SECONDS + TINY:
            return
        given_back = [
            host.host_id
            for host in self._model.hosts.values()
            if host.stage is None and (host.kind not in waiting or own_size > size(host.kind[1]))
        ]
        rooms = self._model.rooms(without=given_back)
        able = [node_id for node_id in rooms if node_id != kept and fits(kind[1], rooms[node_id])]
        assert not able, f"{kind} waits although {able} could take it"
        for start in starts:
            if start.is_new and (*start.rank, *negative(start.size)) > order[:3]:
                assert not fits(kind[1], start.rooms[start.node_id]), f"{start} overtook {kind}"
