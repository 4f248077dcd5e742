"""Slot round: from weights to codes. Each module has `round_weight(weight, statistics, round, scheme, fit)`."""
