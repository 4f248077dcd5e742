"""The queue, one test for each promise of the docstring; what holds under faults is in test_schedule_under_faults."""

from collections import Counter
from collections.abc import Callable

import pytest

from orchestrator.events import (
    AttemptEnded,
    CellSucceeded,
    EvaluateEnded,
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
from orchestrator.retry import FIRST_DELAY_SECONDS
from orchestrator.schedule import HOMELESS_SECONDS, Schedule
from tests.orchestrator.scenarios import CPU, FOUR, LARGEST, ONE, TWO, job
from tests.orchestrator.simulated_cluster import Record, SimulatedCluster
from workers.api import Failure, FailureKind


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


def test_a_model_whose_last_checkpoint_failed_has_nothing_left_to_quantize_either() -> None:
    jobs = [job("a1", model="m1"), job("a2", model="m1"), *(job(f"b{i}", model="m2") for i in range(3))]

    def outcome(cell: Job, stage: str, number: int) -> FailureKind | None:
        return FailureKind.NUMERICAL if (cell.key, stage) == ("a2", "quantize") else None

    record = SimulatedCluster(jobs, [Node("n", 1, 8, 64.0)], seconds=as_estimated, outcome=outcome).run()
    assert starts(record)[:3] == ["q a1", "q a2", "e a1"]


def test_of_two_engines_the_one_with_more_to_score_starts_first() -> None:
    jobs = [job("a", model="m1", ready=True, evaluate_seconds=90.0)]
    jobs += [job(f"b{i}", model="m2", ready=True, evaluate_seconds=50.0) for i in range(2)]
    record = SimulatedCluster(jobs, [Node("n", 1, 8, 64.0)], seconds=as_estimated, outcome=never_fails).run()
    assert starts(record) == ["e b0", "e b1", "e a"]


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


def test_what_is_kept_for_a_large_request_is_not_taken_by_a_small_one() -> None:
    """Two of four GPUs become free: neither may go to the small cell behind the large one."""
    jobs = [job("a", model="m1", ready=True), job("b", model="m2", ready=True, evaluate_seconds=40.0)]
    jobs += [job("large", model="m3", quantize=(FOUR,), baseline=True), job("small", model="m4")]
    schedule = Schedule(jobs, idle_seconds=1e6)
    hosts = with_two_hosts(schedule)
    actions = schedule.handle(EvaluateEnded("a", hosts["m1"], None))
    assert actions == [CellSucceeded("a")], "its host is idle, and stays where it is"
    actions = schedule.handle(EvaluateEnded("b", hosts["m2"], None))
    assert actions[-1] == StartQuantize("large", FOUR, "n")


def with_two_hosts(schedule: Schedule) -> dict[str, str]:
    """Model -> host, on a node that is too small for the rest at first."""
    schedule.handle(Tick(0.0))
    actions = schedule.handle(NodesChanged((Node("n", 2, 8, 128.0),)))
    hosts = {action.host_key: action.host_id for action in actions if isinstance(action, StartHost)}
    assert hosts.keys() == {"m1", "m2"}
    assert schedule.handle(NodesChanged((Node("n", 4, 16, 128.0),))) == []
    return hosts


def test_a_model_that_wants_a_second_host_does_not_stand_before_one_that_waits_for_its_first() -> None:
    """Both want four GPUs of a node with two free; the node is kept for the one without a host."""
    jobs = [job(f"a{i}", model="m1", evaluate=(FOUR,), evaluate_seconds=500.0, ready=True) for i in range(3)]
    jobs += [job("b", model="m2", evaluate=(FOUR,), ready=True), job("small")]
    schedule = Schedule(jobs, idle_seconds=30.0)
    first, *more = schedule.handle(NodesChanged((Node("n", 6, 24, 512.0),)))
    assert isinstance(first, StartHost) and first.host_key == "m1"
    assert more == [StartEvaluate("a0", first.host_id)], "the small cell would fit"


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
    """A schedule on one GPU whose engine host scores its first cell, a baseline."""
    schedule = Schedule([job("first", ready=True, baseline=True), *more], idle_seconds=idle_seconds)
    schedule.handle(Tick(0.0))
    start, evaluate, *_ = schedule.handle(NodesChanged((Node("n", 1, 8, 64.0),)))
    assert isinstance(start, StartHost) and isinstance(evaluate, StartEvaluate)
    return schedule, start.host_id


def test_an_idle_host_on_the_only_gpu_is_given_back_when_a_queued_request_does_not_fit() -> None:
    schedule, host_id = with_host(job("next", model="other"))
    actions = schedule.handle(EvaluateEnded("first", host_id, None))
    assert actions == [CellSucceeded("first"), StopHost(host_id), StartQuantize("next", ONE, "n")]


def test_a_host_with_cells_waiting_for_it_is_kept_although_a_queued_request_does_not_fit() -> None:
    schedule, host_id = with_host(job("second", ready=True), job("third"))
    actions = schedule.handle(EvaluateEnded("first", host_id, None))
    assert actions == [CellSucceeded("first"), StartEvaluate("second", host_id)]


def test_an_idle_host_is_kept_while_nothing_needs_its_place() -> None:
    schedule, host_id = with_host(job("next", model="other", quantize=(CPU,)))
    actions = schedule.handle(EvaluateEnded("first", host_id, None))
    assert actions == [CellSucceeded("first")]


def test_a_host_whose_last_waiting_cell_goes_elsewhere_makes_room_in_the_same_turn() -> None:
    """a0 and b1 come back at once; b1 is served first, while a0 may still want either of two idle hosts."""
    jobs = [job(f"a{i}", model="a", ready=True, evaluate_seconds=200.0) for i in range(2)]
    jobs += [job(f"b{i}", model="b", ready=True, evaluate_seconds=500.0) for i in range(2)]
    schedule = Schedule([*jobs, job("c", model="c", quantize_seconds=900.0)], idle_seconds=1e6)
    began = schedule.handle(NodesChanged((Node("n", 4, 32, 256.0),)))
    hosts = {action.key: action.host_id for action in began if isinstance(action, StartEvaluate)}
    lost = failure("evaluate", FailureKind.WORKER_LOST)
    assert StartQuantize("c", ONE, "n") in schedule.handle(EvaluateEnded("b1", hosts["b1"], lost))
    schedule.handle(EvaluateEnded("a0", hosts["a0"], failure("evaluate", FailureKind.TRANSIENT)))
    schedule.handle(EvaluateEnded("a1", hosts["a1"], None))
    actions = schedule.handle(Tick(FIRST_DELAY_SECONDS))
    (again,) = [action for action in actions if isinstance(action, StartEvaluate) and action.key == "a0"]
    (idle,) = {hosts["a0"], hosts["a1"]} - {again.host_id}
    assert StopHost(idle) in actions and "b1" in {a.key for a in actions if isinstance(a, StartEvaluate)}


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


@pytest.mark.parametrize(
    ("kind", "kept"), [(FailureKind.PARITY, True), (FailureKind.ENGINE, False), (FailureKind.CUDA, False)]
)
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
