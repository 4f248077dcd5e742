"""Sizes without a Hadamard matrix are refused when the sweep is planned."""

from dataclasses import replace

import pytest

from conf.schema import (
    HadamardIncohere,
    HadamardRotate,
    IncohereConf,
    KroneckerIncohere,
    MethodConf,
    NoIncohere,
    NoRotate,
    RandomRotate,
    RotateConf,
    ShapeConf,
)
from orchestrator.rotations import rotation_problems

LLAMA_7B = ShapeConf(
    hidden_size=4096,
    num_hidden_layers=32,
    vocab_size=32000,
    max_position_embeddings=2048,
    intermediate_size=11008,
    num_attention_heads=32,
)
ODD = replace(LLAMA_7B, hidden_size=368, intermediate_size=184, num_attention_heads=4)  # heads of 92


def problems(shape: ShapeConf, rotate: RotateConf | None = None, incohere: IncohereConf | None = None) -> list[str]:
    method = MethodConf("m", "rotation", rotate=rotate or NoRotate(), incohere=incohere or NoIncohere())
    return rotation_problems("llama", shape, method)


@pytest.mark.parametrize("rotate", [HadamardRotate(), RandomRotate(), None])
@pytest.mark.parametrize("incohere", [HadamardIncohere(), HadamardIncohere(sides="input"), None])
def test_sizes_of_models_have_their_matrices(rotate: RotateConf | None, incohere: IncohereConf | None) -> None:
    assert problems(LLAMA_7B, rotate, incohere) == []


@pytest.mark.parametrize(
    ("rotate", "incohere", "expected"),
    [
        (HadamardRotate(), None, ["heads of 92", "an intermediate of 184"]),
        (HadamardRotate(), KroneckerIncohere(), ["heads of 92"]),  # the linear has a basis of its own
        (HadamardRotate(heads=False), None, ["an intermediate of 184"]),
        (HadamardRotate(heads=False, intermediate=False), None, []),
        (RandomRotate(), None, []),
        (None, HadamardIncohere(), ["a linear's side of 184"]),
        (None, KroneckerIncohere(), []),
    ],
)
def test_a_size_without_one_is_named_with_what_to_set(
    rotate: RotateConf | None, incohere: IncohereConf | None, expected: list[str]
) -> None:
    found = problems(ODD, rotate, incohere)
    assert [problem.partition(":")[0] for problem in found] == expected
    assert all("; set method." in problem for problem in found)


def test_a_residual_stream_without_one_is_named() -> None:
    (found,) = problems(
        replace(ODD, hidden_size=92, num_attention_heads=1, head_dim=64), HadamardRotate(True, True, False)
    )
    assert found.startswith("a residual stream of 92: no Hadamard matrix of size 92 can be made: ")
    assert found.endswith("; set method.rotate=random")
