"""Numbers as people read them."""

import math

MINUS = "\u2212"
TIMES = "\u00d7"
PLUS_MINUS = "\u00b1"
SCIENTIFIC_FROM = 1e4


def number(value: float, decimals: int) -> str:
    """Fixed decimals, scientific from 1e4 on; a true minus sign and the infinity sign."""
    if math.isinf(value):
        return "\u221e" if value > 0 else MINUS + "\u221e"
    if abs(value) >= SCIENTIFIC_FROM:
        return scientific(value, decimals)
    fixed = f"{value:.{decimals}f}"
    return fixed.lstrip("-") if float(fixed) == 0 else fixed.replace("-", MINUS)


def scientific(value: float, decimals: int) -> str:
    """1.23e4 rather than 1.23e+04."""
    mantissa, _, exponent = f"{value:.{decimals}e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def signed(value: float, decimals: int) -> str:
    """A difference: with its sign, unless it rounds to nothing."""
    plain = number(value, decimals)
    return f"+{plain}" if value > 0 and plain.strip("0.") else plain


def with_spread(mean: str, deviation: float | None, decimals: int) -> str:
    """`mean +- deviation`; the mean alone where there is none. A small spread never reads as no spread."""
    if deviation is None:
        return mean
    if "e" in mean and deviation > 0:
        shown = scientific(deviation, decimals)
    elif 0 < deviation < 0.5 * 10**-decimals:
        shown = number(deviation, math.ceil(-math.log10(deviation)))
    else:
        shown = number(deviation, decimals)
    return f"{mean} {PLUS_MINUS} {shown}"


def times(value: float) -> str:
    """A ratio: three decimals near 1, fewer when large."""
    return TIMES + number(value, 3 if value < 10 else 1)


def amount(value: float, decimals: int) -> str:
    """Seconds, GiB, counts: fixed decimals, thousands set apart, never scientific."""
    return f"{value:,.{decimals}f}".replace(",", "\u202f")


def short_hash(value: str) -> str:
    """The first twelve characters: enough to tell hashes apart by eye."""
    return value[:12]
