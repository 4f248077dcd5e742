"""Whether a cell can run: a closed list of what cannot in principle, what is not built, and what makes no sense."""

from dataclasses import replace

import pytest

from conf.schema import (
    AwqScale,
    CellConf,
    FloatScheme,
    GptqRound,
    LaneConf,
    MethodConf,
    NearestRound,
    NoRound,
    RoundConf,
    ScaleConf,
    SchemeConf,
    UniformScheme,
)
from orchestrator.cell import CellStatus
from orchestrator.support import illegal, support
from tests.orchestrator.hand_made import make_config


def config(method: MethodConf | None = None, *, published: bool = False) -> CellConf:
    lane = LaneConf("published" if published else "unified", published)
    return replace(make_config(), method=method or make_config().method, lane=lane)


class NewScale(ScaleConf):
    """A stage that nobody has built."""


class NewRound(RoundConf):
    """Another."""


class NewScheme(SchemeConf):
    """A scheme that nobody has built."""


AWQ = MethodConf("awq", "salience", scale=AwqScale())
NEW = MethodConf("new", "salience", scale=NewScale())


def test_what_is_built_can_run() -> None:
    assert support(config(), "llama") == (None, "")


@pytest.mark.parametrize("architecture", ["mamba", "mixtral", "deepseek_moe"])
def test_a_recipe_that_cannot_be_followed_is_not_applicable_with_its_reason(architecture: str) -> None:
    status, reason = support(config(AWQ, published=True), architecture)
    assert status is CellStatus.NOT_APPLICABLE
    assert reason.endswith("(methods, section 4.4)")


def test_the_same_method_in_the_unified_lane_can_run_where_the_architecture_is_built() -> None:
    assert support(config(AWQ), "mamba") == (None, "")
    status, reason = support(config(AWQ), "mamba2")
    assert status is CellStatus.NOT_IMPLEMENTED
    assert reason.startswith("architecture: `mamba2` has no table")


def test_everything_that_is_missing_is_said_at_once() -> None:
    cell = replace(config(MethodConf("x", "y", scale=NewScale(), round=NewRound())), scheme=NewScheme(bits=4))
    status, reason = support(cell, "qwen9")
    assert status is CellStatus.NOT_IMPLEMENTED
    assert reason.split("; ")[:3] == [
        "slot scale: NewScale is not implemented",
        "slot round: NewRound is not implemented",
        "scheme: NewScheme is not implemented",
    ]
    assert "`qwen9` has no table" in reason


def test_combinations_that_make_no_sense_are_refused() -> None:
    plain = config()
    assert illegal(plain) == []
    assert "16-bit floats have none" in illegal(replace(plain, scheme=FloatScheme()))[0]
    baseline = replace(plain, method=MethodConf("none", "baseline", round=NoRound()))
    assert "nothing is rounded" in illegal(baseline)[0]
    assert illegal(replace(baseline, scheme=FloatScheme())) == []
    assert "scheme.bits=9" in illegal(replace(plain, scheme=UniformScheme(bits=9)))[0]
    damped = replace(plain, method=MethodConf("gptq", "compensation", round=GptqRound(damping=-1.0)))
    assert "method.round.damping=-1.0" in illegal(damped)[0]


def test_what_is_not_built_is_not_judged() -> None:
    assert illegal(replace(config(NEW), scheme=UniformScheme(bits=9))) == []
    assert illegal(config(MethodConf("rtn", "baseline", round=NearestRound()))) == []
