"""Bits per weight against figures worked out by hand."""

import pytest

from conf.schema import FloatScheme, RealZeroScheme, SchemeConf, UniformScheme
from workers.methods.accounting import bits_per_weight


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (UniformScheme(bits=2, group_size=128), 2.140625),
        (UniformScheme(bits=4, group_size=128), 4.15625),
        (UniformScheme(bits=4), 4 + 20 / 4096),
        (UniformScheme(bits=4, group_size=128, symmetric=True), 4.125),
        (UniformScheme(bits=4, group_size=128, scale_dtype="float32"), 4 + 36 / 128),
        (FloatScheme(), 16),
    ],
)
def test_codes_scales_and_zero_points_are_counted(scheme: SchemeConf, expected: float) -> None:
    assert bits_per_weight(scheme, in_features=4096) == expected


def test_scheme_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="RealZeroScheme"):
        bits_per_weight(RealZeroScheme(bits=3), in_features=4096)
