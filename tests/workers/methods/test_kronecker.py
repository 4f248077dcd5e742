"""QuIP's bases: orthogonal, function-preserving, incoherent, drawn anew from their seed."""

import math

import pytest
import torch
from torch import Tensor

from conf.schema import KroneckerIncohere
from workers.methods.incohere.kronecker import draw_orthogonal, factor_pair, make_basis
from workers.methods.incohere.rescale import rescale_of

# Pairs of Chee et al.'s code, for sizes of real models.
PAIRS = {
    8: (4, 2),
    64: (8, 8),
    128: (16, 8),
    160: (8, 20),
    192: (24, 8),
    1408: (16, 88),
    2560: (32, 80),
    4096: (64, 64),
    5120: (160, 32),
    6656: (32, 208),
    10944: (456, 24),
    11008: (688, 16),
    14336: (64, 224),
    28672: (448, 64),
}


def _problem(
    out_features: int = 24, in_features: int = 40, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, in_features, generator=generator, dtype=dtype)
    inputs *= torch.rand(in_features, generator=generator, dtype=dtype) * 3
    weight = torch.randn(out_features, in_features, generator=generator, dtype=dtype)
    return weight, inputs


@pytest.mark.parametrize(("size", "pair"), PAIRS.items())
def test_a_dimension_is_split_as_in_the_original(size: int, pair: tuple[int, int]) -> None:
    assert factor_pair(size) == pair


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 24, 64])
def test_the_factored_map_is_orthogonal_and_undone_by_its_inverse(size: int, blocks: bool) -> None:
    orthogonal = draw_orthogonal(size, blocks=blocks, generator=torch.Generator().manual_seed(1))
    dense = orthogonal.apply(torch.eye(size, dtype=torch.float64)).mT
    assert torch.allclose(dense @ dense.mT, torch.eye(size, dtype=torch.float64), atol=1e-12)
    vectors = torch.randn(3, 5, size, dtype=torch.float64)
    assert torch.allclose(orthogonal.apply(vectors), vectors @ dense.mT, atol=1e-12)
    assert torch.allclose(orthogonal.inverse(orthogonal.apply(vectors)), vectors, atol=1e-12)


def test_shared_factors_are_a_kronecker_product_between_permutations() -> None:
    v = draw_orthogonal(12, blocks=False, generator=torch.Generator().manual_seed(2))
    eye = torch.eye(12, dtype=torch.float64)
    written_out = eye[v.after] @ torch.kron(v.first[0], v.second[0]) @ eye[v.before]
    assert torch.allclose(v.apply(eye).mT, written_out, atol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_07_a_weight_that_is_not_rounded_comes_back(dtype: torch.dtype, tolerance: float, rescale: bool) -> None:
    weight, inputs = _problem(dtype=dtype)
    basis = make_basis(weight, inputs.mT @ inputs, KroneckerIncohere(rescale=rescale), seed=3)
    back = basis.back(basis.of_weight(weight))
    assert (back - weight).norm() <= tolerance * weight.norm()


def test_08_the_hessian_in_the_basis_is_that_of_the_inputs_in_the_basis() -> None:
    weight, inputs = _problem()
    hessian = inputs.mT @ inputs / len(inputs)
    basis = make_basis(weight, hessian, KroneckerIncohere(trace_damping=0.0), seed=4)
    assert basis.rescale is not None
    turned = basis.right.apply(inputs / basis.rescale)
    assert torch.allclose(basis.of_hessian(hessian), turned.mT @ turned / len(inputs), rtol=1e-10)
    outputs = basis.left.apply(inputs @ weight.mT)  # x W^T, turned by U
    assert torch.allclose(turned @ basis.of_weight(weight).mT, outputs, rtol=1e-8, atol=1e-10)


def test_trace_damping_is_a_fraction_of_the_mean_diagonal() -> None:
    weight, inputs = _problem()
    hessian = inputs.mT @ inputs
    plain, damped = (
        make_basis(weight, hessian, KroneckerIncohere(trace_damping=damping), seed=5).of_hessian(hessian)
        for damping in (0.0, 0.25)
    )
    expected = 0.25 * plain.diagonal().mean() * torch.eye(len(plain), dtype=plain.dtype)
    assert torch.allclose(damped - plain, expected, atol=1e-8)


def test_the_rescale_minimises_its_bound() -> None:
    """No other diagonal near it has a smaller tr(D^-1 H D^-1) ||W D||^2."""
    weight, inputs = _problem()
    hessian = inputs.mT @ inputs

    def bound(d: Tensor) -> float:
        return float((hessian.diagonal() / d**2).sum() * (weight * d).square().sum())

    best = rescale_of(weight, hessian).double()
    assert math.isclose(best.log().mean(), 0, abs_tol=1e-3)
    for seed in range(20):
        factor = torch.exp(0.05 * torch.randn(len(best), generator=torch.Generator().manual_seed(seed)))
        assert bound(best) < bound(best * factor)


def test_channels_without_weight_or_input_get_a_finite_rescale() -> None:
    weight, inputs = _problem()
    weight[:, 3], inputs[:, 5] = 0, 0
    rescale = rescale_of(weight, inputs.mT @ inputs)
    assert torch.equal(rescale, rescale.half().float())
    assert torch.isfinite(rescale).all() and (rescale > 0).all()


def test_one_outlier_is_spread_over_the_whole_matrix() -> None:
    """The largest of m n Gaussian entries is near sqrt(2 ln(m n)) = 4.7 RMS."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    weight[7, 9] = 60.0
    basis = make_basis(weight, torch.eye(256), KroneckerIncohere(rescale=False), seed=6)
    turned = basis.of_weight(weight)
    assert weight.abs().max() / weight.square().mean().sqrt() > 50
    assert turned.abs().max() / turned.square().mean().sqrt() < 1.5 * math.sqrt(2 * math.log(256 * 256))


def test_23_equal_seeds_give_equal_bases_and_others_do_not() -> None:
    weight, inputs = _problem()
    hessian = inputs.mT @ inputs
    one, again, other = (make_basis(weight, hessian, KroneckerIncohere(), seed=s).of_weight(weight) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_a_rescale_without_a_hessian_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a Hessian"):
        make_basis(torch.ones(4, 4), None, KroneckerIncohere(), seed=0)
    assert make_basis(torch.ones(4, 4), None, KroneckerIncohere(rescale=False), seed=0).rescale is None
