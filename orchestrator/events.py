"""The words between the schedule and those who carry it out: nodes, jobs, what happened, what to do."""

import enum
from dataclasses import dataclass

from orchestrator.placement import Placement
from orchestrator.retry import Ladder
from workers.api import Failure


class Stage(enum.StrEnum):
    """The two stages of a cell, as `Failure.stage` spells them."""

    QUANTIZE = "quantize"
    EVALUATE = "evaluate"


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

    The ladders hold the placement to begin with and the larger ones to try after running out of memory. Jobs with one
    quantize_key wait for the same checkpoint.
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


@dataclass(frozen=True)
class LeftToAnother:
    """In place of an end: the stage was not started, because another sweep has taken the cell."""

    key: str


End = QuantizeEnded | EvaluateEnded
Event = NodesChanged | End | Tick | LeftToAnother


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartQuantize:
    """Run the quantize stage of a cell; answered by one QuantizeEnded, or by LeftToAnother."""

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
    """Score a cell on a host; answered by one EvaluateEnded, or by LeftToAnother."""

    key: str
    host_id: str


@dataclass(frozen=True)
class StopHost:
    """Give an engine host's resources back, or forget it when its process or node is gone already."""

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
