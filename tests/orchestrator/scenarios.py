"""Cells, nodes and faults from which tests of the schedule are made."""

from dataclasses import replace

from hypothesis import strategies as st

from orchestrator.events import Job, Node
from orchestrator.placement import Placement
from orchestrator.retry import Ladder
from tests.orchestrator.simulated_cluster import Faults
from workers.api import FailureKind

CPU = Placement(0, 1, 2.0)
ONE = Placement(1, 4, 20.0)
TWO = Placement(2, 8, 40.0, 2)
FOUR = Placement(4, 16, 80.0, 4)
LADDERS: tuple[Ladder, ...] = (
    (CPU,),
    (ONE,),
    (TWO,),
    (FOUR,),
    (ONE, TWO, FOUR),
    (TWO, FOUR),
    (CPU, Placement(0, 1, 9.7)),
)
LARGEST = Node("n0", 8, 64, 512.0)
NODES = (LARGEST, Node("n1", 4, 16, 128.0), Node("n2", 1, 4, 32.0), Node("n3", 0, 4, 9.7))
CLUSTERS = (NODES, tuple(Node(f"n{i}", 4, 16, 128.0) for i in range(3)), (LARGEST, Node("n1", 8, 64, 512.0)))
KINDS = tuple(FailureKind)


def job(
    key: str,
    *,
    quantize: Ladder = (ONE,),
    evaluate: Ladder = (ONE,),
    model: str = "m",
    shares: str = "",
    quantize_seconds: float = 100.0,
    evaluate_seconds: float = 50.0,
    baseline: bool = False,
    ready: bool = False,
) -> Job:
    """A cell of model `model`; cells with the same `shares` have one checkpoint."""
    return Job(
        key, shares or f"q-{key}", model, quantize, evaluate, quantize_seconds, evaluate_seconds, baseline, ready
    )


@st.composite
def sweeps(draw: st.DrawFn) -> list[Job]:
    """Cells of a few models with baselines, shared checkpoints, ladders that differ per model, and two engines."""
    jobs = []
    for model in range(draw(st.integers(1, 3))):
        quantize = draw(st.sampled_from(LADDERS))
        engines = [(f"m{model} {engine}", draw(st.sampled_from(LADDERS))) for engine in "ab"[: draw(st.integers(1, 2))]]
        for i in range(draw(st.integers(1, 6))):
            shared = f"q-{model}.{draw(st.integers(0, i))}"
            host_key, evaluate = draw(st.sampled_from(engines))
            jobs.append(
                Job(
                    f"{model}.{i}",
                    shared,
                    host_key,
                    quantize,
                    evaluate,
                    draw(st.floats(1.0, 500.0)),
                    draw(st.floats(1.0, 500.0)),
                    is_baseline=shared == f"q-{model}.0",
                    checkpoint_ready=False,
                )
            )
    ready = draw(st.sets(st.sampled_from(sorted({j.quantize_key for j in jobs}))))
    return [replace(job, checkpoint_ready=job.quantize_key in ready) for job in jobs]


FAULTS = st.builds(
    Faults,
    stage_seconds=st.sampled_from([60.0, 60.0, 350.0]),
    failure_chance=st.sampled_from([0.0, 0.1, 0.5]),
    kinds=st.sampled_from([KINDS, (FailureKind.WORKER_LOST,), (FailureKind.OUT_OF_MEMORY,), (FailureKind.TRANSIENT,)]),
    host_death_chance=st.sampled_from([0.0, 0.2]),
    node_changes=st.integers(0, 6),
    node_seconds=st.sampled_from([5.0, 100.0, 2000.0]),
    fixed_nodes=st.sampled_from([frozenset[str](), frozenset({"n0"}), frozenset(n.id for n in NODES)]),
    delay_seconds=st.sampled_from([0.0, 15.0]),
    slow_seconds=st.sampled_from([0.0, 40.0]),
    lost_chance=st.sampled_from([0.0, 0.1]),
    hang_chance=st.sampled_from([0.0, 0.1]),
    restarts=st.integers(0, 3),
    taken_chance=st.sampled_from([0.0, 0.0, 0.1]),
    stalls=st.integers(0, 2),
)
