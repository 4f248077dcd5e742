"""Bits per weight against figures worked out by hand."""

from dataclasses import replace

import pytest

from conf.schema import (
    FloatScheme,
    GptqRound,
    KroneckerIncohere,
    LdlqRound,
    MethodConf,
    RealZeroScheme,
    RmsClip,
    SchemeConf,
    UniformScheme,
    VectorCodebookScheme,
)
from workers.methods.accounting import bits_per_weight

GPTQ = MethodConf(name="gptq", category="compensation", round=GptqRound())


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (UniformScheme(bits=2, group_size=128), 2.140625),
        (UniformScheme(bits=4, group_size=128), 4.15625),
        (UniformScheme(bits=4), 4 + 20 / 4096),
        (UniformScheme(bits=4, group_size=128, symmetric=True), 4.125),
        (UniformScheme(bits=4, group_size=128, scale_dtype="float32"), 4 + 36 / 128),
        (RealZeroScheme(bits=4, group_size=64), 4.5),
        (VectorCodebookScheme(bits=2), 2 + 16 / (1000 * 4096)),
        (FloatScheme(), 16),
    ],
)
def test_codes_scales_and_zero_points_are_counted(scheme: SchemeConf, expected: float) -> None:
    assert bits_per_weight(GPTQ, scheme, 1000, 4096) == expected


def test_scheme_without_a_rule_is_refused() -> None:
    class NewScheme(SchemeConf):
        pass

    with pytest.raises(ValueError, match="NewScheme"):
        bits_per_weight(GPTQ, NewScheme(bits=3), 1000, 4096)


def test_a_rotated_linear_stores_its_rescale_a_seed_and_one_scale() -> None:
    quip = MethodConf(name="quip", category="rotation", incohere=KroneckerIncohere(), clip=RmsClip(), round=LdlqRound())
    expected = 2 + (16 + 16 * 4096 + 64) / (1000 * 4096)
    assert bits_per_weight(quip, UniformScheme(bits=2), 1000, 4096) == expected
    plain = replace(quip, incohere=KroneckerIncohere(rescale=False))
    assert bits_per_weight(plain, UniformScheme(bits=2, group_size=64), 1000, 4096) == 2 + 16 / 64 + 64 / (1000 * 4096)
