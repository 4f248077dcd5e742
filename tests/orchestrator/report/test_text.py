import math

import pytest

from orchestrator.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(20.904, "20.90"), (9999.99, "9999.99"), (41234.7, "4.12e4"), (math.inf, "∞"), (-0.001, "0.00"), (-1.5, "−1.50")],
)
def test_perplexities_have_two_decimals_and_are_scientific_from_ten_thousand_on(value: float, shown: str) -> None:
    assert text.number(value, 2) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0249, "+0.025"), (-0.0249, "−0.025"), (0.0, "0.000"), (0.0001, "0.000"), (math.inf, "+∞")]
)
def test_a_difference_shows_its_sign_unless_it_rounds_to_nothing(value: float, shown: str) -> None:
    assert text.signed(value, 3) == shown


@pytest.mark.parametrize(
    ("deviation", "shown"),
    [(None, "21.84"), (0.126, "21.84 ± 0.13"), (0.0, "21.84 ± 0.00"), (0.0004, "21.84 ± 0.0004")],
)
def test_a_small_spread_never_reads_as_none(deviation: float | None, shown: str) -> None:
    assert text.with_spread("21.84", deviation, 2) == shown


def test_a_scientific_mean_has_a_scientific_spread() -> None:
    assert text.with_spread("4.12e4", 4123.4, 2) == "4.12e4 ± 4.12e3"


def test_amounts_are_never_scientific() -> None:
    assert text.amount(1234567.89, 1) == "1\u202f234\u202f567.9"
