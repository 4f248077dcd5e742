"""A driver's view of its sweep, kept apart from the schedule: stages, hosts, who holds what, and the queue's order."""

import math
from collections.abc import Container
from dataclasses import dataclass

from orchestrator.events import Job, Node
from orchestrator.placement import Placement

Room = tuple[float, float, float]  # GPUs, CPUs, GiB
Rooms = dict[str, Room]  # by node
Kind = tuple[str | None, Placement]  # a host of which host_key, or null for quantize
Size = tuple[float, float]


@dataclass(eq=False)
class Stage:
    """The making of a checkpoint, for all who wait for it, or the scoring of one cell."""

    name: str
    jobs: list[Job]
    state: str  # blocked | waiting | running | over
    not_before: float = 0.0
    rung: int = 0

    @property
    def key(self) -> str:
        return self.jobs[0].key

    @property
    def ladder(self) -> tuple[Placement, ...]:
        return self.jobs[0].quantize if self.name == "quantize" else self.jobs[0].evaluate

    @property
    def kind(self) -> Kind:
        return (None if self.name == "quantize" else self.jobs[0].host_key, self.ladder[self.rung])

    @property
    def seconds(self) -> float:
        return self.jobs[0].quantize_seconds if self.name == "quantize" else self.jobs[0].evaluate_seconds


@dataclass(eq=False)
class Host:
    host_id: str
    kind: Kind
    node_id: str
    stage: Stage | None = None
    idle_since: float = 0.0
    trusted: bool = True  # false once it went down, failed suspiciously, or its node was away


class Model:
    """What is so now. It shares no code with the schedule."""

    def __init__(self, jobs: list[Job], now: float) -> None:
        self.now = now
        self.nodes: dict[str, Node] = {}
        self.held: dict[str, tuple[str, Placement]] = {}  # holder -> node, share
        self.hosts: dict[str, Host] = {}
        self.checkpoints: dict[str, Stage] = {}  # by quantize_key
        for job in jobs:
            state = "over" if job.checkpoint_ready else "waiting"
            self.checkpoints.setdefault(job.quantize_key, Stage("quantize", [], state)).jobs.append(job)
        self.scores = {
            job.key: Stage("evaluate", [job], "waiting" if job.checkpoint_ready else "blocked") for job in jobs
        }
        self._order = {job.key: number for number, job in enumerate(jobs)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.checkpoints.values(), *self.scores.values())

    def making(self, key: str) -> Stage:
        """The checkpoint that is made in an attempt at this cell."""
        return next(stage for stage in self.checkpoints.values() if stage.key == key)

    def waiting(self) -> dict[Kind, list[Stage]]:
        """What could start now if there were room."""
        found: dict[Kind, list[Stage]] = {}
        for stage in self.stages:
            if stage.state == "waiting" and stage.not_before <= self.now:
                found.setdefault(stage.kind, []).append(stage)
        return found

    def rank(self, kind: Kind) -> tuple[float, ...]:
        if kind[0] is None:
            return (2,)
        unmade = (job.host_key for s in self.checkpoints.values() if s.state != "over" for job in s.jobs)
        return (3,) if kind[0] in unmade else (1,)

    def precedence(self, kind: Kind, stages: list[Stage]) -> tuple[float, ...]:
        """Baselines, then engines that get no more cells, then quantization, then other engines; large, then long."""
        head = min(stages, key=lambda s: (not s.jobs[0].is_baseline, -s.seconds, self._order[s.key]))
        rank = (0.0,) if head.jobs[0].is_baseline else self.rank(kind)
        seconds = head.seconds if kind[0] is None else sum(stage.seconds for stage in stages)
        return (*rank, *negative(size(kind[1])), -seconds, self._order[head.key])

    def num_hosts(self, kind: Kind) -> int:
        return sum(host.kind == kind and host.trusted for host in self.hosts.values())

    def able(self, placement: Placement) -> list[str]:
        """Nodes that could take it if they were empty."""
        return [n.id for n in self.nodes.values() if fits(placement, (n.num_gpus, n.num_cpus, n.memory_gib))]

    def rooms(self, without: Container[str] = ()) -> Rooms:
        """What is free on each node, and would be without these holders."""
        held: dict[str, list[Placement]] = {node_id: [] for node_id in self.nodes}
        for holder, (node_id, placement) in self.held.items():
            if node_id in held and holder not in without:
                held[node_id].append(placement)
        return {
            n.id: (
                n.num_gpus - sum(p.num_gpus for p in held[n.id]),
                n.num_cpus - sum(p.num_cpus for p in held[n.id]),
                n.memory_gib - math.fsum(p.memory_gib for p in held[n.id]),
            )
            for n in self.nodes.values()
        }


def fits(placement: Placement, room: Room) -> bool:
    return placement.num_gpus <= room[0] and placement.num_cpus <= room[1] and placement.memory_gib <= room[2]


def size(placement: Placement) -> Size:
    return (placement.num_gpus, 0.0 if placement.num_gpus else placement.memory_gib)


def negative(size: Size) -> Size:
    return (-size[0], -size[1])
