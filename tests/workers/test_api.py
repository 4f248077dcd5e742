"""What workers and driver hand each other survives JSON, and what is not that is refused."""

import dataclasses
import math
import types
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import SuiteConf, TextConf
from workers.api import (
    AttemptResult,
    EvaluateResult,
    Failure,
    FailureKind,
    LayerReport,
    Manifest,
    Metric,
    QuantizeResult,
    from_json,
    to_json,
)

WRITTEN = (AttemptResult, EvaluateResult, Failure, LayerReport, Manifest, Metric, QuantizeResult)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a type as `workers.api` uses types."""
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return st.builds(annotation, **{name: values_of(hint) for name, hint in hints.items()})  # type: ignore[arg-type]
    match typing.get_origin(annotation), typing.get_args(annotation):
        case (typing.Union, arguments) | (types.UnionType, arguments):
            return st.one_of(*(values_of(a) for a in arguments))
        case built_in, (inner,) if built_in is list:
            return st.lists(values_of(inner), max_size=2)
        case built_in, (_, inner) if built_in is dict:
            return st.dictionaries(st.text(max_size=3), values_of(inner), max_size=2)
    if annotation is float:
        return st.floats(allow_nan=False)
    return st.from_type(annotation)


@pytest.mark.parametrize("cls", WRITTEN, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_is_written_is_read_back(cls: type, data: st.DataObject) -> None:
    value = data.draw(values_of(cls))
    assert from_json(cls, to_json(value)) == value


def test_configuration_inside_a_request_is_read_back_too() -> None:
    suite = SuiteConf("text", perplexity={"held_out": TextConf("text", "/t")}, tasks=["piqa"])
    assert from_json(SuiteConf, to_json(suite)) == suite


def test_figures_that_are_not_finite_are_kept() -> None:
    metric = from_json(Metric, to_json(Metric("t.perplexity", math.inf, math.nan, 8, "1")))
    assert math.isinf(metric.value)
    assert metric.stderr is not None and math.isnan(metric.stderr)


def test_kinds_are_read_back_as_kinds() -> None:
    failure = from_json(Failure, to_json(Failure("quantize", FailureKind.NUMERICAL, "NaN")))
    assert failure.kind is FailureKind.NUMERICAL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"stage": "quantize", "kind": "NUMERICAL", "message": "m", "colour": "red"}',
        '{"stage": "quantize", "kind": "NO_SUCH_KIND", "message": "m"}',
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_json(Failure, text)
