"""Slot round: from weights to codes. Each module has `round_weight(weight, hessian, round, scheme, fit) -> Rounded`."""
