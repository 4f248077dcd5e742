"""Canonical JSON, and the keys that are hashed from it: the same for the same data on every machine."""

import dataclasses
import hashlib
import json
import math
from typing import Any


def plain(value: Any) -> Any:
    """Dataclasses to dicts tagged with their class name. Raises TypeError on anything that is not plain data."""
    if value is None or isinstance(value, (str, int)):  # bool is an int
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"canonical JSON has no {value}")
        return value
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON has text keys only: {sorted(map(repr, value))}")
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    raise TypeError(f"canonical JSON cannot hold {type(value).__name__}: {value!r}")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, ASCII: the same text for the same data on every machine."""
    return _ENCODER.encode(plain(value))


def key_of(payload: Any) -> str:
    """sha256 of canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()
