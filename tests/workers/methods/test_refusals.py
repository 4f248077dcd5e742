"""Settings that are refused before anything starts."""

from typing import Any

import pytest

from conf.schema import (
    AwqScale,
    ClipConf,
    ColumnsKeep,
    FloatScheme,
    GptaqRound,
    GptqRound,
    HqqRound,
    KeepConf,
    LdlqRound,
    MaskKeep,
    MethodConf,
    MinmaxClip,
    MixedScheme,
    MseClip,
    NearestRound,
    NoKeep,
    RealZeroScheme,
    RmsClip,
    RoundConf,
    SchemeConf,
    SearchClip,
    UniformScheme,
    VectorCodebookScheme,
)
from workers.methods.refusals import refusals


def _method(stage: RoundConf, clip: ClipConf | None = None) -> MethodConf:
    return MethodConf(name="m", category="compensation", clip=clip or MinmaxClip(), round=stage)


def _kept(keep: KeepConf, **stages: Any) -> MethodConf:
    return MethodConf(**{"name": "m", "category": "compensation", "round": GptqRound(), "keep": keep, **stages})


def _scaled(scale: AwqScale) -> MethodConf:
    return MethodConf(name="m", category="salience", scale=scale)


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        (MethodConf(name="none", category="baseline"), FloatScheme()),
        (_method(NearestRound()), UniformScheme(bits=2)),
        (_method(GptqRound()), UniformScheme(bits=4, group_size=64, symmetric=True)),
        (_method(GptqRound(act_order=False, static_groups=False)), UniformScheme(bits=4, group_size=64)),
        (_method(GptqRound(static_groups=False)), UniformScheme(bits=4)),
        (_method(LdlqRound(), clip=RmsClip()), VectorCodebookScheme(bits=3)),
        (_method(NearestRound(), clip=RmsClip(constant=0.9)), VectorCodebookScheme(bits=4)),
        (_method(GptqRound(), clip=MseClip()), UniformScheme(bits=3, scale_dtype="float32")),
    ],
)
def test_ordinary_settings_are_accepted(method: MethodConf, scheme: SchemeConf) -> None:
    assert refusals(method, scheme) == []


@pytest.mark.parametrize(
    ("method", "scheme", "key"),
    [
        (_method(NearestRound()), FloatScheme(), "scheme"),
        (_kept(ColumnsKeep()), UniformScheme(bits=2, group_size=64), "scheme.group_size"),
        (_kept(ColumnsKeep(extra_bits=15.0)), UniformScheme(bits=2), "method.keep.extra_bits"),
        (_kept(ColumnsKeep(damping=-1.0)), UniformScheme(bits=2), "method.keep.damping"),
        (_kept(MaskKeep()), UniformScheme(bits=2), "method.keep"),
        (_kept(NoKeep()), MixedScheme(bits=2), "scheme"),
        (_kept(MaskKeep()), MixedScheme(bits=2, group_size=64), "scheme.group_size"),
        (_kept(MaskKeep(), clip=MseClip()), MixedScheme(bits=2), "method.clip"),
        (_kept(MaskKeep(), scale=AwqScale()), MixedScheme(bits=2), "method.scale"),
        (_kept(MaskKeep(saliency="loud")), MixedScheme(bits=2), "method.keep.saliency"),
        (_kept(MaskKeep(bits=9)), MixedScheme(bits=2), "method.keep.bits"),
        (_kept(MaskKeep(fraction=1.5)), MixedScheme(bits=2), "method.keep.fraction"),
        (_kept(MaskKeep(bits=2)), MixedScheme(bits=3), "scheme.bits"),
        (_method(HqqRound()), UniformScheme(bits=2), "method.round"),
        (_method(HqqRound(iterations=-1)), RealZeroScheme(bits=2), "method.round.iterations"),
        (_method(HqqRound(beta=0.0)), RealZeroScheme(bits=2), "method.round.beta"),
        (_method(HqqRound(norm=-0.5)), RealZeroScheme(bits=2), "method.round.norm"),
        (_method(GptqRound()), RealZeroScheme(bits=0), "scheme.bits"),
        (_method(GptqRound(), clip=RmsClip()), RealZeroScheme(bits=2), "method.clip"),
        (_method(GptaqRound(static_groups=False)), UniformScheme(bits=2), "method.round.static_groups"),
        (_kept(ColumnsKeep(), round=GptaqRound()), UniformScheme(bits=2), "method.keep"),
        (_kept(NoKeep(), round=GptaqRound(), inputs="original"), UniformScheme(bits=2), "method.inputs"),
        (_kept(NoKeep(), inputs="both"), UniformScheme(bits=2), "method.inputs"),
        (_method(NearestRound()), UniformScheme(bits=9), "scheme.bits"),
        (_method(NearestRound()), UniformScheme(bits=4, group_size=0), "scheme.group_size"),
        (_method(NearestRound()), UniformScheme(bits=4, scale_dtype="bfloat16"), "scheme.scale_dtype"),
        (_method(NearestRound(), clip=MseClip(steps=101)), UniformScheme(bits=4), "method.clip.steps"),
        (_method(NearestRound(), clip=MseClip(norm=0.0)), UniformScheme(bits=4), "method.clip.norm"),
        (_method(GptqRound(damping=-0.1)), UniformScheme(bits=4), "method.round.damping"),
        (_method(GptqRound(block_size=0)), UniformScheme(bits=4), "method.round.block_size"),
        (_method(GptqRound(on_failure="ignore")), UniformScheme(bits=4), "method.round.on_failure"),
        (_method(GptqRound(static_groups=False)), UniformScheme(bits=4, group_size=64), "method.round.act_order"),
        (_method(NearestRound(), clip=SearchClip(num_tokens=0)), UniformScheme(bits=4), "method.clip.num_tokens"),
        (_method(NearestRound(), clip=SearchClip(max_shrink=0.0)), UniformScheme(bits=4), "method.clip.max_shrink"),
        (_scaled(AwqScale(grid=0)), UniformScheme(bits=4), "method.scale.grid"),
        (_scaled(AwqScale(num_windows=0)), UniformScheme(bits=4), "method.scale.num_windows"),
        (_scaled(AwqScale(gqa="min")), UniformScheme(bits=4), "method.scale.gqa"),
        (_method(NearestRound(), clip=RmsClip(constant=0.0)), UniformScheme(bits=4), "method.clip.constant"),
        (_method(NearestRound(), clip=RmsClip(candidates=[1.5])), UniformScheme(bits=4), "method.clip.candidates"),
        (_method(LdlqRound(), clip=RmsClip()), VectorCodebookScheme(bits=5), "scheme.bits=5: e8p has 2, 3, 4"),
        (_method(LdlqRound(), clip=RmsClip()), VectorCodebookScheme(bits=2, group_size=8), "scheme.group_size=8"),
        (_method(LdlqRound(), clip=RmsClip()), VectorCodebookScheme(bits=2, codebook="d4"), "scheme.codebook=d4"),
        (_method(GptqRound(), clip=RmsClip()), VectorCodebookScheme(bits=2), "method.round"),
        (_method(LdlqRound()), VectorCodebookScheme(bits=2), "method.clip"),
    ],
)
def test_refusal_names_the_key(method: MethodConf, scheme: SchemeConf, key: str) -> None:
    (reason,) = refusals(method, scheme)

    assert reason.startswith(key)


def test_reordered_dynamic_groups_are_refused_with_the_reason_and_both_ways_out() -> None:
    (reason,) = refusals(_method(GptqRound(static_groups=False)), UniformScheme(bits=4, group_size=64))

    assert "index per column" in reason
    assert "static_groups=true or act_order=false" in reason
