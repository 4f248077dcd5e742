"""The queue in simulated time: rules that hold whatever breaks, and one test for each promise of the docstring."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.events import (
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
from orchestrator.retry import FIRST_DELAY_SECONDS, Ladder
from orchestrator.schedule import HOMELESS_SECONDS, Schedule
from tests.orchestrator.simulated_cluster import Faults, Record, SimulatedCluster
from workers.api import Failure, FailureKind

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


def failure(stage: str, kind: FailureKind) -> Failure:
    return Failure(stage, kind, "told by the test")


def starts(record: Record) -> list[str]:
    """Cells in the order in which their stages were started, as `q key` and `e key`."""
    names = {StartQuantize: "q", StartEvaluate: "e"}
    return [f"{names[type(a)]} {a.key}" for _, a in record.actions if isinstance(a, StartQuantize | StartEvaluate)]


def as_estimated(cell: Job, stage: str) -> float:
    return cell.quantize_seconds if stage == "quantize" else cell.evaluate_seconds


def never_fails(cell: Job, stage: str, number: int) -> None:
    return None


# --- whatever breaks -------------------------------------------------------------------------------------------------


@st.composite
def sweeps(draw: st.DrawFn) -> list[Job]:
    """Cells of a few models with baselines, shared checkpoints, and ladders that differ per model."""
    jobs = []
    for model in range(draw(st.integers(1, 3))):
        quantize, evaluate = draw(st.sampled_from(LADDERS)), draw(st.sampled_from(LADDERS))
        for i in range(draw(st.integers(1, 6))):
            key = f"{model}.{i}"
            shared = f"q-{model}.{draw(st.integers(0, i))}"
            jobs.append(
                Job(
                    key,
                    shared,
                    f"m{model}",
                    quantize,
                    evaluate,
                    draw(st.floats(1.0, 500.0)),
                    draw(st.floats(1.0, 500.0)),
                    is_baseline=shared == f"q-{model}.0",
                    checkpoint_ready=False,
                )
            )
    ready = draw(st.sets(st.sampled_from(sorted({j.quantize_key for j in jobs}))))
    return [Job(**{**vars(j), "checkpoint_ready": j.quantize_key in ready}) for j in jobs]


FAULTS = st.builds(
    Faults,
    failure_chance=st.sampled_from([0.0, 0.1, 0.5]),
    kinds=st.sampled_from([KINDS, (FailureKind.WORKER_LOST,), (FailureKind.OUT_OF_MEMORY,), (FailureKind.TRANSIENT,)]),
    host_death_chance=st.sampled_from([0.0, 0.2]),
    node_changes=st.integers(0, 6),
    node_seconds=st.sampled_from([5.0, 100.0, 2000.0]),
    delay_seconds=st.sampled_from([0.0, 15.0]),
    fixed_nodes=st.sampled_from([frozenset[str](), frozenset({"n0"}), frozenset(n.id for n in NODES)]),
)


@settings(max_examples=150, deadline=None)
@given(jobs=sweeps(), faults=FAULTS, seed=st.integers(0, 2**32), idle_seconds=st.sampled_from([0.0, 30.0, 1e6]))
def test_every_cell_ends_once_and_no_rule_is_broken_whatever_fails_leaves_or_comes_back(
    jobs: list[Job], faults: Faults, seed: int, idle_seconds: float
) -> None:
    cluster = SimulatedCluster(jobs, list(NODES), seed=seed, faults=faults, idle_seconds=idle_seconds)
    record = cluster.run()
    started = Counter(a.key for a in record.of(StartQuantize))
    assert max(started.values(), default=0) <= 1 + 3 + 2 + max(len(j.quantize) - 1 for j in jobs)
    assert len(record.of(StartHost)) == len(record.of(StopHost))


@settings(max_examples=50, deadline=None)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_without_faults_every_cell_succeeds_and_each_checkpoint_is_made_once(jobs: list[Job], seed: int) -> None:
    cluster = SimulatedCluster(jobs, list(NODES), seed=seed)
    record = cluster.run()
    assert set(cluster.ends.values()) == {None}
    unmade = {j.quantize_key for j in jobs if not j.checkpoint_ready}
    keys = {j.key: j.quantize_key for j in jobs}
    assert sorted(keys[a.key] for a in record.of(StartQuantize)) == sorted(unmade)
    assert len(record.of(StartEvaluate)) == len(jobs)


@settings(max_examples=50, deadline=None)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_nodes_that_come_and_go_cost_no_cell_while_each_comes_back(jobs: list[Job], seed: int) -> None:
    faults = Faults(node_changes=2, node_seconds=60.0, delay_seconds=8.0)
    cluster = SimulatedCluster(jobs, list(NODES), seed=seed, faults=faults)
    cluster.run()
    assert set(cluster.ends.values()) == {None}


@settings(max_examples=50, deadline=None)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_on_one_small_node_everything_still_drains(jobs: list[Job], seed: int) -> None:
    cluster = SimulatedCluster(jobs, [Node("only", 4, 16, 80.0)], seed=seed, idle_seconds=1e6)
    cluster.run()
    assert set(cluster.ends.values()) == {None}


def test_equal_events_lead_to_equal_actions() -> None:
    def actions() -> list[Any]:
        jobs = [job(f"c{i}", model=f"m{i % 3}", shares=f"q{i // 2}") for i in range(20)]
        faults = Faults(failure_chance=0.2, kinds=KINDS, node_changes=3, delay_seconds=5.0)
        return SimulatedCluster(jobs, list(NODES), seed=3, faults=faults).run().actions

    assert actions() == actions()


# --- order -----------------------------------------------------------------------------------------------------------


def test_baselines_go_first_then_quantization_then_the_engine_once() -> None:
    jobs = [job("a"), job("b"), job("base", baseline=True), job("c", quantize_seconds=200.0)]
    record = SimulatedCluster(jobs, [Node("n", 1, 8, 64.0)], seconds=as_estimated, outcome=never_fails).run()
    assert starts(record) == ["q base", "e base", "q c", "q a", "q b", "e a", "e b", "e c"]
    assert len(record.of(StartHost)) == 2


def test_a_model_with_nothing_left_to_quantize_is_scored_before_the_next_model_is_quantized() -> None:
    jobs = [job("a", model="m1", quantize_seconds=300.0), *(job(f"b{i}", model="m2") for i in range(3))]
    record = SimulatedCluster(jobs, [Node("n", 1, 8, 64.0)], seconds=as_estimated, outcome=never_fails).run()
    assert starts(record)[:2] == ["q a", "e a"]


def test_a_second_host_of_a_model_starts_only_where_it_is_worth_it() -> None:
    short = [job(f"c{i}", ready=True, evaluate_seconds=5.0) for i in range(8)]
    assert len(SimulatedCluster(short, [LARGEST]).run().of(StartHost)) == 1
    long = [job(f"c{i}", ready=True, evaluate_seconds=500.0) for i in range(8)]
    assert len(SimulatedCluster(long, [LARGEST]).run().of(StartHost)) == 8


def test_cells_of_one_model_share_a_warm_host_and_other_models_do_not() -> None:
    jobs = [job(f"{m}{i}", model=m, ready=True, evaluate_seconds=1.0) for m in "ab" for i in range(3)]
    record = SimulatedCluster(jobs, [LARGEST]).run()
    assert Counter(a.host_key for a in record.of(StartHost)) == {"a": 1, "b": 1}


def test_small_cells_do_not_starve_one_that_needs_four_gpus() -> None:
    """The small host's node is drained for the large one, although a hundred small cells are ready."""
    small = [job(f"s{i}", model="small", ready=True, evaluate_seconds=30.0) for i in range(100)]
    large = job("large", model="large", evaluate=(FOUR,), quantize=(CPU,))
    node = Node("n", 4, 20, 128.0)
    record = SimulatedCluster([*small, large], [node], seconds=as_estimated, outcome=never_fails).run()
    order = starts(record)
    wished = next(t for t, a in record.actions if isinstance(a, StartQuantize)) + large.quantize_seconds
    started = next(t for t, a in record.actions if a == StartEvaluate("large", a_host(record, "large")))
    assert started - wished <= 30.0, "as soon as the small cells at work then have ended"
    assert order.index("e large") < 30


def a_host(record: Record, key: str) -> str:
    """The host that scored a cell first."""
    return next(a.host_id for a in record.of(StartEvaluate) if a.key == key)


def test_a_reserved_node_does_not_hold_up_the_other_nodes() -> None:
    schedule = Schedule(
        [job("held", quantize=(ONE,)), job("large", quantize=(FOUR,)), *(job(f"s{i}") for i in range(9))],
        idle_seconds=30.0,
    )
    schedule.handle(NodesChanged((Node("small", 1, 4, 32.0),)))
    actions = schedule.handle(NodesChanged((Node("small", 1, 4, 32.0), Node("big", 3, 16, 128.0))))
    assert [a.node_id for a in actions if isinstance(a, StartQuantize)] == ["big"] * 3


def test_whole_nodes_stay_open_for_those_who_need_them() -> None:
    schedule = Schedule([job("a")], idle_seconds=30.0)
    actions = schedule.handle(NodesChanged((Node("big", 8, 64, 512.0), Node("small", 1, 4, 32.0))))
    assert actions == [StartQuantize("a", ONE, "small")]


# --- hosts -----------------------------------------------------------------------------------------------------------


def with_host(*more: Job, idle_seconds: float = 1e6) -> tuple[Schedule, str]:
    """A schedule on one GPU whose engine host scores its first cell."""
    schedule = Schedule([job("first", ready=True), *more], idle_seconds=idle_seconds)
    schedule.handle(Tick(0.0))
    start, evaluate, *_ = schedule.handle(NodesChanged((Node("n", 1, 8, 64.0),)))
    assert isinstance(start, StartHost) and isinstance(evaluate, StartEvaluate)
    return schedule, start.host_id


def test_an_idle_host_on_the_only_gpu_is_given_back_when_a_queued_request_does_not_fit() -> None:
    schedule, host_id = with_host(job("next", model="other"))
    actions = schedule.handle(EvaluateEnded("first", host_id, None))
    assert actions == [CellSucceeded("first"), StopHost(host_id), StartQuantize("next", ONE, "n")]


def test_an_idle_host_is_kept_while_nothing_needs_its_place() -> None:
    schedule, host_id = with_host(job("next", model="other", quantize=(CPU,)))
    actions = schedule.handle(EvaluateEnded("first", host_id, None))
    assert actions == [CellSucceeded("first")]


def test_an_idle_host_is_given_back_after_its_time() -> None:
    schedule, host_id = with_host(job("next", model="other", quantize=(CPU,)), idle_seconds=30.0)
    schedule.handle(EvaluateEnded("first", host_id, None))
    assert schedule.handle(Tick(29.0)) == []
    assert schedule.handle(Tick(30.0)) == [StopHost(host_id)]


def test_the_last_cell_takes_its_host_with_it() -> None:
    schedule, host_id = with_host()
    assert schedule.handle(EvaluateEnded("first", host_id, None)) == [CellSucceeded("first"), StopHost(host_id)]
    assert schedule.finished


def test_a_host_that_went_down_is_not_used_again() -> None:
    schedule, host_id = with_host(job("second", ready=True))
    lost = failure("evaluate", FailureKind.WORKER_LOST)
    actions = schedule.handle(EvaluateEnded("first", host_id, lost, host_alive=False))
    assert actions[:2] == [StopHost(host_id), AttemptEnded("first", lost, final=False)]
    assert isinstance(actions[2], StartHost) and actions[2].host_id != host_id
    assert actions[3] == StartEvaluate("second", actions[2].host_id)


@pytest.mark.parametrize(("kind", "kept"), [(FailureKind.PARITY, True), (FailureKind.ENGINE, False)])
def test_an_engine_that_failed_is_not_trusted_with_another_cell(kind: FailureKind, kept: bool) -> None:
    schedule, host_id = with_host(job("second", ready=True))
    actions = schedule.handle(EvaluateEnded("first", host_id, failure("evaluate", kind)))
    assert (StopHost(host_id) not in actions) is kept
    (start,) = [a for a in actions if isinstance(a, StartEvaluate)]
    assert (start.host_id == host_id) is kept


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_an_idle_host_whose_node_vanished_is_dropped() -> None:
    schedule, host_id = with_host(job("next", model="other", quantize=(CPU,)))
    schedule.handle(EvaluateEnded("first", host_id, None))
    assert StopHost(host_id) in schedule.handle(NodesChanged(()))


def test_a_busy_host_whose_node_vanished_is_dropped_when_its_cell_has_ended_even_if_the_node_came_back() -> None:
    schedule, host_id = with_host(job("second", ready=True))
    assert schedule.handle(NodesChanged(())) == []
    schedule.handle(NodesChanged((Node("n", 1, 8, 64.0),)))
    actions = schedule.handle(EvaluateEnded("first", host_id, None, host_alive=True))
    assert actions[:2] == [StopHost(host_id), CellSucceeded("first")]
    assert isinstance(actions[2], StartHost)


def test_work_in_flight_on_a_node_that_came_back_still_counts_there() -> None:
    schedule = Schedule([job("a"), job("b")], idle_seconds=30.0)
    node = Node("n", 1, 8, 64.0)
    assert schedule.handle(NodesChanged((node,))) == [StartQuantize("a", ONE, "n")]
    schedule.handle(NodesChanged(()))
    assert schedule.handle(NodesChanged((node,))) == []


def test_a_cell_no_node_is_large_enough_for_is_given_up_after_a_time() -> None:
    schedule = Schedule([job("a", shares="q"), job("b", shares="q")], idle_seconds=30.0)
    schedule.handle(Tick(0.0))
    schedule.handle(NodesChanged((Node("cpu", 0, 8, 64.0),)))
    assert schedule.handle(Tick(HOMELESS_SECONDS - 1)) == []
    actions = schedule.handle(Tick(HOMELESS_SECONDS))
    assert [(a.key, a.final) for a in actions if isinstance(a, AttemptEnded)] == [("a", True), ("b", True)]
    assert isinstance(actions[0], AttemptEnded) and "1 GPUs, 4 CPUs and 20 GiB" in actions[0].failure.message
    assert schedule.finished


def test_a_node_that_comes_in_time_saves_the_cells_that_wait_for_it() -> None:
    schedule = Schedule([job("a")], idle_seconds=30.0)
    schedule.handle(Tick(0.0))
    schedule.handle(Tick(HOMELESS_SECONDS - 1))
    assert schedule.handle(NodesChanged((Node("n", 1, 8, 64.0),))) == [StartQuantize("a", ONE, "n")]


# --- failures --------------------------------------------------------------------------------------------------------


def failing(*kinds: FailureKind, stage: str = "quantize") -> Callable[[Job, str, int], FailureKind | None]:
    """The first tries of a stage fail so; the next one succeeds."""
    return lambda cell, s, number: kinds[number - 1] if s == stage and number <= len(kinds) else None


def ends_of(record: Record) -> list[tuple[FailureKind, bool]]:
    return [(a.failure.kind, a.final) for _, a in record.actions if isinstance(a, AttemptEnded)]


@pytest.mark.parametrize("stage", ["quantize", "evaluate"])
def test_out_of_memory_climbs_its_ladder(stage: str) -> None:
    ladder = (ONE, TWO, FOUR)
    cell = job("a", quantize=ladder, evaluate=ladder)
    oom = FailureKind.OUT_OF_MEMORY
    record = SimulatedCluster([cell], [LARGEST], outcome=failing(oom, oom, stage=stage)).run()
    placed = record.of(StartQuantize) if stage == "quantize" else record.of(StartHost)
    assert [a.placement for a in placed] == [ONE, TWO, FOUR]
    assert ends_of(record) == [(oom, False), (oom, False)]


def test_out_of_memory_on_the_last_rung_is_final() -> None:
    cell = job("a", quantize=(ONE, TWO))
    oom = FailureKind.OUT_OF_MEMORY
    cluster = SimulatedCluster([cell], [LARGEST], outcome=failing(oom, oom))
    assert ends_of(cluster.run()) == [(oom, False), (oom, True)]
    assert cluster.ends == {"a": oom}


@pytest.mark.parametrize(("kind", "retries"), [(FailureKind.WORKER_LOST, 2), (FailureKind.TRANSIENT, 3)])
@pytest.mark.parametrize("stage", ["quantize", "evaluate"])
def test_what_may_pass_is_tried_again_a_few_times_each_time_later(stage: str, kind: FailureKind, retries: int) -> None:
    record = SimulatedCluster([job("a")], [LARGEST], outcome=failing(*[kind] * retries, stage=stage)).run()
    assert ends_of(record) == [(kind, False)] * retries
    wanted = StartQuantize if stage == "quantize" else StartEvaluate
    failed = [t for t, a in record.actions if isinstance(a, AttemptEnded)]
    started = [t for t, a in record.actions if isinstance(a, wanted)][1:]
    for number, (was, again) in enumerate(zip(failed, started, strict=True)):
        assert again - was == pytest.approx(FIRST_DELAY_SECONDS * 2**number, abs=1.0)
    record = SimulatedCluster([job("a")], [LARGEST], outcome=failing(*[kind] * (retries + 1), stage=stage)).run()
    assert ends_of(record) == [*[(kind, False)] * retries, (kind, True)]


def test_a_worker_lost_in_either_stage_counts_towards_the_same_two_retries() -> None:
    lost = FailureKind.WORKER_LOST
    wanted = {("quantize", 1), ("evaluate", 1), ("evaluate", 2)}
    cluster = SimulatedCluster([job("a")], [LARGEST], outcome=lambda c, s, n: lost if (s, n) in wanted else None)
    assert ends_of(cluster.run()) == [(lost, False), (lost, False), (lost, True)]


RETRIED = (FailureKind.OUT_OF_MEMORY, FailureKind.WORKER_LOST, FailureKind.TRANSIENT)


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind not in RETRIED])
def test_what_would_fail_again_is_not_tried_again(kind: FailureKind) -> None:
    assert ends_of(SimulatedCluster([job("a")], [LARGEST], outcome=failing(kind)).run()) == [(kind, True)]


def test_cells_that_share_a_checkpoint_make_it_once_and_fail_together() -> None:
    jobs = [job(key, shares="q") for key in "abc"]
    lost = FailureKind.WORKER_LOST
    cluster = SimulatedCluster(jobs, [LARGEST], outcome=failing(lost, lost, lost))
    record = cluster.run()
    assert [a.key for a in record.of(StartQuantize)] == ["a"] * 3
    assert [(a.key, a.final) for _, a in record.actions if isinstance(a, AttemptEnded)] == [
        ("a", False),
        ("a", False),
        ("a", True),
        ("b", True),
        ("c", True),
    ]
    assert cluster.ends == dict.fromkeys("abc", lost)


def test_a_failed_score_leaves_the_other_cells_of_the_checkpoint_alone() -> None:
    jobs = [job(key, shares="q") for key in "ab"]

    def parity(cell: Job, stage: str, number: int) -> FailureKind | None:
        return FailureKind.PARITY if (cell.key, stage) == ("b", "evaluate") else None

    cluster = SimulatedCluster(jobs, [LARGEST], outcome=parity)
    cluster.run()
    assert cluster.ends == {"a": None, "b": FailureKind.PARITY}


def test_others_go_on_while_one_waits_for_its_next_try() -> None:
    schedule = Schedule([job("a"), job("b")], idle_seconds=30.0)
    schedule.handle(Tick(0.0))
    schedule.handle(NodesChanged((Node("n", 1, 8, 64.0),)))
    actions = schedule.handle(QuantizeEnded("a", failure("quantize", FailureKind.TRANSIENT)))
    assert StartQuantize("b", ONE, "n") in actions


def test_an_end_that_answers_no_start_is_an_error() -> None:
    schedule, host_id = with_host()
    with pytest.raises(AssertionError, match="answers no start"):
        schedule.handle(EvaluateEnded("second", host_id, None))


# --- size ------------------------------------------------------------------------------------------------------------


def calls_per_event(num_cells: int) -> float:
    """Python calls that `handle` makes for one event, on average over a sweep of 20 models."""
    jobs = [
        job(f"c{i}", model=f"m{i % 20}", evaluate=(FOUR,) if i % 20 > 15 else (ONE,), baseline=i < 20)
        for i in range(num_cells)
    ]
    schedule = Schedule(jobs, idle_seconds=30.0)
    calls = 0
    events: list[Event] = [Tick(0.0), NodesChanged(tuple(Node(f"n{i}", 8, 64, 512.0) for i in range(2)))]

    def count(frame: Any, what: str, argument: Any) -> None:
        nonlocal calls
        calls += what == "call"

    number = 0
    while not schedule.finished:
        sys.setprofile(count)
        actions = schedule.handle(events.pop(0))
        sys.setprofile(None)
        number += 1
        for action in actions:
            match action:
                case StartQuantize(key):
                    events.append(QuantizeEnded(key, None))
                case StartEvaluate(key, host_id):
                    events.append(EvaluateEnded(key, host_id, None))
    return calls / number


def test_the_work_for_one_event_does_not_grow_with_the_number_of_cells() -> None:
    assert calls_per_event(2000) < 1.5 * calls_per_event(200)
