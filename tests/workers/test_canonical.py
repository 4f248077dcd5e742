"""Canonical JSON: one text for one set of plain data, and none for anything else."""

import enum
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import GptqRound
from workers.canonical import canonical_json


class _Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), b"bytes", 1 + 2j, math.nan, math.inf, -math.inf, Path("x"), _Colour.RED, {1: "a"}, [{"a": {1}}]],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_data_has_no_canonical_json(value: Any) -> None:
    with pytest.raises(TypeError, match="canonical JSON"):
        canonical_json(value)


def test_a_class_is_not_taken_for_its_instance() -> None:
    with pytest.raises(TypeError, match="canonical JSON"):
        canonical_json(GptqRound)


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": [1, 2.0, None, True], "a": "ä"}) == '{"a":"\\u00e4","b":[1,2.0,null,true]}'


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=st.dictionaries(st.text(), plain_data))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@given(value=plain_data)
def test_canonical_json_loses_nothing(value: Any) -> None:
    assert repr(json.loads(canonical_json(value))) == repr(in_order(value))


def in_order(value: Any) -> Any:
    """The same data with sorted keys."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(v) for v in value] if isinstance(value, list) else value
