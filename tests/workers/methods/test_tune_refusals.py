"""Settings of slot tune, and of what it trains, that are refused before anything starts."""

from typing import Any

import pytest

from conf.schema import (
    BlockTune,
    ColumnsKeep,
    GptaqRound,
    GptqRound,
    HadamardRotate,
    HqqRound,
    KroneckerIncohere,
    LdlqRound,
    LearnedClip,
    LearnedScale,
    MethodConf,
    MinmaxClip,
    MseClip,
    NearestRound,
    NoTune,
    RealZeroScheme,
    SchemeConf,
    UniformScheme,
)
from workers.methods.refusals import refusals

DIRECT = LearnedClip(form="direct", init=1.0)


def method(**changed: Any) -> MethodConf:
    """OmniQuant; `tune` changes its BlockTune."""
    tune = changed.pop("tune", {})
    slots: dict[str, Any] = {"clip": LearnedClip(), "round": NearestRound(), "tune": BlockTune(learns=["clip"])}
    made = MethodConf("m", "optimization", **(slots | changed))
    if isinstance(tune, NoTune):
        made.tune = tune
    else:
        vars(made.tune).update(tune)
    return made


@pytest.mark.parametrize(
    "accepted",
    [
        method(),
        method(clip=DIRECT, tune={"learns": ["clip", "rounding"], "epochs": 0, "iterations": 200}),
        method(scale=LearnedScale(), tune={"learns": ["clip", "scale"]}),
        method(scale=LearnedScale(init="log"), clip=MinmaxClip(), tune={"learns": ["scale"]}),
        method(clip=MinmaxClip(), tune={"learns": ["rounding"]}),
        method(round=GptqRound()),
        method(round=LdlqRound()),
        method(round=GptaqRound()),
        method(rotate=HadamardRotate(intermediate=False)),
        method(tune={"epochs": 0}),
    ],
)
def test_what_can_be_trained_is_accepted(accepted: MethodConf) -> None:
    assert refusals(accepted, UniformScheme(bits=2, group_size=64)) == []


@pytest.mark.parametrize(
    ("refused", "key"),
    [
        (method(tune={"learns": ["clip", "zero"]}), "method.tune.learns: zero"),
        (method(tune=NoTune()), "method.clip=learned is trained by slot tune"),
        (method(clip=MinmaxClip()), "method.tune.learns: clip"),
        (method(tune={"learns": ["clip", "scale"]}), "method.tune.learns: scale"),
        (method(scale=LearnedScale()), "method.scale=learned is trained by slot tune"),
        (method(round=GptqRound(), tune={"learns": ["clip", "rounding"]}), "method.tune.learns: rounding"),
        (method(round=GptqRound(act_order=False, static_groups=False)), "method.round.static_groups=false"),
        (method(incohere=KroneckerIncohere()), "method.tune=block trains each linear in its own basis"),
        (method(rotate=HadamardRotate()), "method.tune=block trains each linear in its own basis"),
        (method(keep=ColumnsKeep()), "method.tune=block has no rule for kept columns"),
        (method(clip=MseClip(), tune={"learns": ["rounding"]}), "method.tune=block trains on whole ranges"),
        (method(tune={"iterations": 100}), "method.tune.epochs=20 and iterations=100"),
        (method(tune={"epochs": -1}), "method.tune.epochs=-1"),
        (method(tune={"epochs": 0, "iterations": -1}), "method.tune.iterations=-1"),
        (method(tune={"batch_size": 0}), "method.tune.batch_size=0"),
        (method(tune={"optimizer": "muon"}), "method.tune.optimizer=muon"),
        (method(tune={"loss": "kl"}), "method.tune.loss=kl"),
        (method(tune={"learning_rate": 0.0}), "method.tune.learning_rate=0.0"),
        (method(clip=LearnedClip(learning_rate=-1.0)), "method.clip.learning_rate=-1.0"),
        (method(clip=LearnedClip(form="tanh")), "method.clip.form=tanh"),
        (method(clip=LearnedClip(form="direct")), "method.clip.init=4.0"),
        (method(scale=LearnedScale(init="awq"), tune={"learns": ["clip", "scale"]}), "method.scale.init=awq"),
        (method(scale=LearnedScale(alpha=2.0), tune={"learns": ["clip", "scale"]}), "method.scale.alpha=2.0"),
        (
            method(scale=LearnedScale(learning_rate=0.0), tune={"learns": ["clip", "scale"]}),
            "method.scale.learning_rate",
        ),
    ],
)
def test_a_refusal_names_the_key(refused: MethodConf, key: str) -> None:
    (reason,) = refusals(refused, UniformScheme(bits=2))
    assert reason.startswith(key)


def test_nothing_to_learn_is_refused() -> None:
    (reason,) = refusals(method(clip=MinmaxClip(), tune={"learns": []}), UniformScheme(bits=2))
    assert reason.startswith("method.tune.learns is empty")


@pytest.mark.parametrize("stage", [NearestRound(), HqqRound()])
def test_real_zero_points_are_not_trained(stage: NearestRound | HqqRound) -> None:
    scheme: SchemeConf = RealZeroScheme(bits=2)
    assert any("trains integer grids" in reason for reason in refusals(method(round=stage), scheme))
