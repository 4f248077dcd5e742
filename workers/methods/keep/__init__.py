"""Slot keep: what stays at more bits. Each module has `round_rest(weight, statistics, keep, scheme, fit, rounding)`."""
