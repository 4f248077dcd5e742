"""Codebooks of vectors: E8P against its definition, its nearest search against all 65,536, whole linears."""

import pytest
import torch
from torch import Tensor

from conf.schema import LdlqRound, MethodConf, NearestRound, RmsClip, UniformScheme, VectorCodebookScheme
from workers import packing
from workers.methods import codebook, e8p
from workers.methods.clip import rms
from workers.methods.codebook import CodebookParams, fit_codebook
from workers.methods.errors import MethodError
from workers.methods.linear import quantize_linear, restored
from workers.methods.statistics import Statistics

CPU = torch.device("cpu")
GAUSSIAN_ERROR = {2: 0.0915, 3: 0.0296, 4: 0.0097}  # measured; at 2 bits the original's 29 give the same


def _points(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = 3 * torch.rand(count, 1, generator=generator, dtype=torch.float64)  # from the centre to far outside
    return size * torch.randn(count, 8, generator=generator, dtype=torch.float64)


# --- E8P -------------------------------------------------------------------------------------------------------------


def test_magnitudes_are_all_of_norm_ten_and_29_of_norm_twelve() -> None:
    magnitudes = e8p.magnitudes(CPU)
    norms = magnitudes.square().sum(1)
    assert len(magnitudes.unique(dim=0)) == 256
    assert int((norms <= 10).sum()) == 227 and int((norms == 12).sum()) == 29
    assert set(magnitudes[norms == 12].unique().tolist()) == {0.5, 1.5}
    counts = (magnitudes[norms == 12] == 1.5).sum(0)
    assert int(counts.max() - counts.min()) <= 3, "no place is preferred"


def test_65536_vectors_are_distinct_and_each_is_of_a_moved_e8() -> None:
    vectors = e8p.vectors(CPU)
    assert len(vectors.unique(dim=0)) == 1 << 16
    shift = 0.25 * (2 * (torch.arange(1 << 16) & 1) - 1)
    lattice = vectors - shift[:, None]
    assert (lattice % 1 == 0.5).all() and (lattice.sum(1) % 2 == 0).all()


def test_encoding_a_vector_gives_its_code() -> None:
    assert torch.equal(e8p.nearest(e8p.vectors(CPU)), torch.arange(1 << 16, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nearest_vector_is_that_of_a_search_through_all(dtype: torch.dtype) -> None:
    points, vectors = _points(512).to(dtype), e8p.vectors(CPU).to(dtype)
    scores = points @ vectors.mT - vectors.square().sum(1) / 2
    found = (points - vectors[e8p.nearest(points).long()]).square().sum(1)
    smallest = (points - vectors[scores.argmax(1)]).square().sum(1)
    assert torch.allclose(found, smallest, rtol=1e-5, atol=0)


def test_slices_do_not_change_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    points = _points(100)
    whole = e8p.nearest(points)
    monkeypatch.setattr(e8p, "VECTORS_AT_ONCE", 7)
    assert torch.equal(e8p.nearest(points), whole)


# --- codebooks of 2, 3 and 4 bits ------------------------------------------------------------------------------------


def test_the_one_bit_codebook_is_zero_the_roots_of_e8_and_15_more() -> None:
    vectors = codebook.ball_vectors(CPU)
    norms, counts = vectors.square().sum(1).unique(return_counts=True)
    assert (norms.tolist(), counts.tolist()) == ([0, 2, 4], [1, 240, 15])
    assert len(vectors.unique(dim=0)) == 256
    assert torch.equal(codebook.ball_nearest(vectors), torch.arange(256, dtype=torch.int32))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_gaussian_error_is_that_of_the_codebook(bits: int) -> None:
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    params = fit_codebook(weight, 1 / codebook.RMS[bits], bits)
    error = (weight - params.values(params.nearest(weight))).square().mean() / weight.square().mean()
    assert float(error) == pytest.approx(GAUSSIAN_ERROR[bits], rel=0.02)
    assert float(error) < {2: 0.1175, 3: 0.0345, 4: 0.0115}[bits], "the best scalar levels; at 4 bits uniform ones"


@pytest.mark.parametrize(("bits", "stages"), [(2, 1), (3, 2), (4, 2)])
def test_codes_of_coded_weights_are_the_same_and_there_is_one_for_each_vector_and_stage(bits: int, stages: int) -> None:
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    params = fit_codebook(weight, 1 / codebook.RMS[bits], bits)
    codes = params.nearest(weight)
    assert (codes.dtype, list(codes.shape)) == (torch.int32, [5, 4, stages])
    values = params.values(codes, torch.float64)
    again = params.nearest(values)
    if stages == 1:
        assert torch.equal(again, codes)
    left = (params.values(again, torch.float64) - values).norm(dim=1)  # a residual may lie in another vector's cell
    assert (left <= (weight - values).norm(dim=1)).all()


def test_a_scale_is_what_float16_holds_or_refused() -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    params = rms.fit_grid(weight, RmsClip(), VectorCodebookScheme(bits=2))
    assert isinstance(params, CodebookParams)
    assert float(params.scale) == pytest.approx(float(weight.square().mean().sqrt()) / 1.03, rel=1e-3)
    assert torch.equal(params.scale, params.scale.half().float())
    with pytest.raises(MethodError, match="above float16's largest"):
        rms.fit_grid(1e6 * weight, RmsClip(), VectorCodebookScheme(bits=2))


def test_columns_that_fill_no_vector_are_refused() -> None:
    with pytest.raises(ValueError, match="8 columns together, which do not divide the 20"):
        rms.fit_grid(torch.ones(2, 20), RmsClip(), VectorCodebookScheme(bits=2))


# --- a whole linear --------------------------------------------------------------------------------------------------

LDLQ = MethodConf("x", "rotation", clip=RmsClip(), round=LdlqRound(greedy_passes=2))


def _linear(bits: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(bits)
    inputs = torch.randn(256, 48, generator=generator) @ torch.randn(48, 48, generator=generator)
    return torch.randn(16, 48, generator=generator), inputs.mT @ inputs / 256


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_codes_come_back_and_take_the_bits_that_are_reported(bits: int) -> None:
    weight, hessian = _linear(bits)
    scheme = VectorCodebookScheme(bits=bits)
    linear = quantize_linear(weight, Statistics(hessian), LDLQ, scheme)
    layout = packing.layout_of(LDLQ, scheme)
    assert not layout.is_common
    tensors = packing.pack(linear, layout)
    codes, params, basis = packing.unpack(tensors, layout)
    assert basis is None and torch.equal(codes, linear.codes) and codes.dtype == linear.codes.dtype
    assert torch.equal(restored(codes, params, basis), linear.dense)
    stored = sum(t.numel() * t.element_size() * 8 for name, t in tensors.items() if name != "weight_shape")
    assert stored == linear.outcome.bits_per_weight * weight.numel()


def test_feedback_beats_rounding_to_nearest_and_vectors_beat_levels() -> None:
    weight, hessian = _linear(2)
    scheme = VectorCodebookScheme(bits=2)
    plain = MethodConf("x", "rotation", clip=RmsClip(), round=NearestRound())
    own, levels, nearest = (
        quantize_linear(weight, Statistics(hessian), method, given).outcome.proxy_loss or 0.0
        for method, given in ((LDLQ, scheme), (LDLQ, UniformScheme(bits=2)), (plain, scheme))
    )
    assert own < nearest
    assert own < levels


def test_a_searched_scale_is_at_least_as_good_and_is_reported() -> None:
    weight, hessian = _linear(2)
    scheme = VectorCodebookScheme(bits=2)
    searched = MethodConf("x", "rotation", clip=RmsClip(candidates=[0.9, 1 / 1.03, 1.1]), round=LdlqRound())
    plain = MethodConf("x", "rotation", clip=RmsClip(), round=LdlqRound())
    best, own = (quantize_linear(weight, Statistics(hessian), m, scheme).outcome for m in (searched, plain))
    assert best.proxy_loss is not None and own.proxy_loss is not None
    assert best.proxy_loss <= own.proxy_loss
    assert own.applied == "clip=rms(0.971) round=ldlq"
