"""What follows a failed attempt."""

import pytest

from orchestrator.placement import Placement
from orchestrator.retry import GiveUp, Retry, decide
from workers.api import Failure, FailureKind

ONE, TWO = Placement(1, 4, 20.0), Placement(2, 8, 40.0, 2)


def failures(*what: str) -> list[Failure]:
    """`quantize TRANSIENT`, ... in order."""
    return [Failure(stage, FailureKind(kind), "told by the test") for stage, kind in (w.split() for w in what)]


@pytest.mark.parametrize("kind", ["TRANSIENT", "WORKER_LOST"])
@pytest.mark.parametrize("stage", ["quantize", "evaluate"])
def test_each_retry_waits_twice_as_long_as_the_one_before(stage: str, kind: str) -> None:
    delays = [decide(failures(*[f"{stage} {kind}"] * count), (ONE,)) for count in (1, 2)]
    assert delays == [Retry(10.0), Retry(20.0)]


def test_a_lost_worker_is_replaced_twice_in_both_stages_together() -> None:
    assert decide(failures("quantize WORKER_LOST", "evaluate WORKER_LOST"), (ONE,)) == Retry(20.0)
    thrice = failures("quantize WORKER_LOST", "evaluate WORKER_LOST", "evaluate WORKER_LOST")
    assert decide(thrice, (ONE,)) == GiveUp("WORKER_LOST 3 times")


def test_a_transient_failure_is_retried_three_times() -> None:
    assert decide(failures(*["quantize TRANSIENT"] * 3), (ONE,)) == Retry(40.0)
    assert decide(failures(*["quantize TRANSIENT"] * 4), (ONE,)) == GiveUp("TRANSIENT 4 times")


def test_failures_of_other_kinds_do_not_use_up_retries() -> None:
    mixed = failures("quantize TRANSIENT", "quantize TRANSIENT", "quantize WORKER_LOST")
    assert decide(mixed, (ONE,)) == Retry(10.0)


def test_out_of_memory_goes_on_at_once_while_there_is_a_larger_placement() -> None:
    assert decide(failures("quantize OUT_OF_MEMORY"), (ONE, TWO)) == Retry(0.0)
    assert decide(failures(*["quantize OUT_OF_MEMORY"] * 2), (ONE, TWO)) == GiveUp(
        "no larger placement in this cluster"
    )
    assert decide(failures("quantize OUT_OF_MEMORY"), (ONE,)) == GiveUp("no larger placement in this cluster")


def test_each_stage_climbs_its_own_ladder() -> None:
    assert decide(failures("quantize OUT_OF_MEMORY", "evaluate OUT_OF_MEMORY"), (ONE, TWO)) == Retry(0.0)


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - {"TRANSIENT", "WORKER_LOST", "OUT_OF_MEMORY"}))
def test_everything_else_would_fail_the_same_way_again(kind: FailureKind) -> None:
    assert decide(failures(f"quantize {kind}"), (ONE, TWO)) == GiveUp(f"{kind} is not retried")
