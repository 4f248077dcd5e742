"""Properties of uniform grids, over ragged and extreme shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conf.schema import MinmaxClip, UniformScheme
from workers.methods.clip.minmax import fit_grid
from workers.methods.errors import MethodError
from workers.methods.grid import SMALLEST_SCALE, QuantParams, dequantize, quantize, split_groups, storable

BITS = st.integers(1, 8)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 33))  # out, groups, columns of a group
SCALE_DTYPES = st.sampled_from(["float16", "float32"])


def _weight(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Random weights; each group has one of 1, so that no range is too narrow for a float16 scale."""
    out_features, groups, size = shape
    weight = torch.randn(out_features, groups * size, generator=torch.Generator().manual_seed(seed))
    weight[:, ::size] = 1.0
    return weight


def _fit(weight: Tensor, scheme: UniformScheme) -> QuantParams:
    return fit_grid(weight, MinmaxClip(), scheme)


@given(SHAPES, BITS, st.booleans(), SCALE_DTYPES, st.integers(0, 99))
def test_19_codes_are_within_range_and_values_are_at_most_two_to_the_bits(
    shape: tuple[int, int, int], bits: int, symmetric: bool, scale_dtype: str, seed: int
) -> None:
    weight = _weight(shape, seed)
    params = _fit(weight, UniformScheme(bits=bits, group_size=shape[2], symmetric=symmetric, scale_dtype=scale_dtype))

    codes = quantize(weight, params)

    assert codes.shape == weight.shape
    assert int(codes.max()) <= 2**bits - 1
    for group in split_groups(dequantize(codes, params), shape[2]).reshape(-1, shape[2]):
        assert len(group.unique()) <= 2**bits


@given(SHAPES, BITS, st.booleans(), SCALE_DTYPES, st.integers(0, 99))
def test_quantizing_a_quantized_weight_again_changes_nothing(
    shape: tuple[int, int, int], bits: int, symmetric: bool, scale_dtype: str, seed: int
) -> None:
    weight = _weight(shape, seed)
    params = _fit(weight, UniformScheme(bits=bits, group_size=shape[2], symmetric=symmetric, scale_dtype=scale_dtype))
    codes = quantize(weight, params)

    assert torch.equal(quantize(dequantize(codes, params), params), codes)


@given(SHAPES, BITS, st.booleans(), st.integers(0, 99))
def test_error_inside_the_range_is_at_most_half_a_step(
    shape: tuple[int, int, int], bits: int, symmetric: bool, seed: int
) -> None:
    weight = _weight(shape, seed).double()
    params = _fit(weight, UniformScheme(bits=bits, group_size=shape[2], symmetric=symmetric))
    scale = params.scale.double().repeat_interleave(shape[2], 1)
    zero_point = params.zero_point.repeat_interleave(shape[2], 1)
    inside = (weight >= -scale * zero_point) & (weight <= scale * (params.max_code - zero_point))

    error = (weight - dequantize(quantize(weight, params), params, torch.float64)).abs()

    assert (error[inside] <= scale[inside] / 2 * (1 + 1e-12)).all()  # 1e-12: the division by the scale, in float64


@given(SHAPES, BITS, st.booleans(), SCALE_DTYPES, st.integers(0, 99))
def test_zero_is_on_every_grid(
    shape: tuple[int, int, int], bits: int, symmetric: bool, scale_dtype: str, seed: int
) -> None:
    weight = _weight(shape, seed)
    params = _fit(weight, UniformScheme(bits=bits, group_size=shape[2], symmetric=symmetric, scale_dtype=scale_dtype))

    assert int(params.zero_point.min()) >= 0
    assert int(params.zero_point.max()) <= params.max_code
    zeros = torch.zeros_like(weight)
    assert torch.equal(dequantize(quantize(zeros, params), params), zeros)


@given(SHAPES, st.integers(-6, 6), st.integers(0, 99))
def test_a_power_of_two_in_front_of_the_weight_goes_into_the_scale(
    shape: tuple[int, int, int], exponent: int, seed: int
) -> None:
    weight = _weight(shape, seed)
    scheme = UniformScheme(bits=3, group_size=shape[2], scale_dtype="float32")
    params, scaled = _fit(weight, scheme), _fit(weight * 2.0**exponent, scheme)

    assert torch.equal(scaled.scale, params.scale * 2.0**exponent)
    assert torch.equal(quantize(weight * 2.0**exponent, scaled), quantize(weight, params))


@given(SHAPES, BITS, st.integers(0, 99))
def test_scale_survives_storage_in_its_dtype(shape: tuple[int, int, int], bits: int, seed: int) -> None:
    params = _fit(_weight(shape, seed), UniformScheme(bits=bits, group_size=shape[2], scale_dtype="float16"))

    assert torch.equal(params.scale.to(torch.float16).float(), params.scale)


def test_halves_are_rounded_to_even() -> None:
    params = QuantParams(torch.ones(1, 1), torch.full((1, 1), 4, dtype=torch.int32), bits=3, group_size=None)

    assert quantize(torch.tensor([[-1.5, -0.5, 0.5, 1.5, 2.5]]), params).tolist() == [[2, 4, 4, 6, 6]]


def test_group_size_that_does_not_divide_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="group_size=128 does not divide 704"):
        split_groups(torch.zeros(2, 704), 128)


def test_groups_are_neighbouring_columns() -> None:
    assert split_groups(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), 2).tolist() == [
        [[1, 2], [3, 4]],
        [[5, 6], [7, 8]],
    ]


def test_scale_above_float16_is_refused_naming_row_group_and_the_way_out() -> None:
    weight = torch.ones(3, 4)
    weight[1, 2:] = 6e6

    with pytest.raises(MethodError, match=r"scale inf of output row 1, group 1 .*set scheme\.scale_dtype=float32"):
        _fit(weight, UniformScheme(bits=2, group_size=2, scale_dtype="float16"))
    _fit(weight, UniformScheme(bits=2, group_size=2, scale_dtype="float32"))


@given(exponent=st.integers(-30, -10), bits=st.sampled_from([2, 3, 4]))
def test_a_row_that_decayed_to_nothing_loses_less_than_the_smallest_scale(exponent: int, bits: int) -> None:
    weight = torch.randn(1, 16, generator=torch.Generator().manual_seed(-exponent)) * 2.0**exponent
    params = _fit(weight, UniformScheme(bits=bits, scale_dtype="float16"))

    error = (dequantize(quantize(weight, params), params) - weight).abs().max()

    # half a step, and what rounding the scale to float16 (to 2^-25 below its normal range) does to the largest code
    rounding = params.max_code * max(2.0**-25, float(params.scale) * 2.0**-11)
    assert float(params.scale) >= SMALLEST_SCALE
    assert error <= params.scale / 2 + rounding


def test_scale_outside_float32_blames_the_weights() -> None:
    params = QuantParams(torch.full((1, 1), torch.inf), torch.zeros(1, 1, dtype=torch.int32), bits=2, group_size=None)

    with pytest.raises(MethodError, match="check the checkpoint's weights"):
        storable(params, UniformScheme(bits=2, scale_dtype="float32"))
