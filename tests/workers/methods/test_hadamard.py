"""Hadamard matrices of every size that models have, their fast transform, and the bases made of them."""

import math

import pytest
import torch
from torch import Tensor

from conf.schema import GptqRound, HadamardIncohere, MethodConf, UniformScheme
from workers.methods import orders
from workers.methods.errors import MethodError
from workers.methods.hadamard import SignedHadamard, draw_signed, hadamard_matrix
from workers.methods.incohere.hadamard import draw_basis, make_basis
from workers.methods.refusals import refusals
from workers.methods.rotate import hadamard, random

# K of sizes of real models; 1 is Sylvester's alone.
BASE = {
    128: 1,
    192: 12,
    160: 20,
    704: 44,
    1408: 44,
    2560: 20,
    2816: 44,
    4096: 1,
    5120: 20,
    6656: 52,
    10944: 684,
    11008: 344,
    13824: 108,
    14336: 28,
    17920: 140,
    22016: 344,
    28672: 28,
}
PRODUCT = 1904  # 28 x 68, and neither it nor a divisor with the same odd part is an order of Paley's
ORDERS = (1, 2, 8, 12, 20, 28, 36, 40, 44, 52, 60, 76, 104, 108, 140, 344, 684, PRODUCT)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _problem(
    out_features: int = 24, in_features: int = 40, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(200, in_features, generator=_generator(), dtype=dtype)
    inputs *= torch.rand(in_features, generator=_generator(1), dtype=dtype) * 3
    return torch.randn(out_features, in_features, generator=_generator(2), dtype=dtype), inputs


@pytest.mark.parametrize("order", ORDERS)
def test_09_rows_are_orthogonal_in_integers(order: int) -> None:
    matrix = hadamard_matrix(order).float()  # sums of whole numbers below 2^24 are exact
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.mT, order * torch.eye(order))


@pytest.mark.parametrize(("size", "order"), BASE.items())
def test_09_every_size_of_a_model_has_a_base(size: int, order: int) -> None:
    assert orders.base_order(size) == order
    assert orders.missing(size) is None


def test_09_fields_of_prime_powers_and_products_are_used_where_they_are_needed() -> None:
    assert orders.construction(28) == orders.Paley(3, 3)
    assert orders.construction(52) == orders.Paley(5, 2)
    assert orders.construction(344) == orders.Paley(7, 3)
    assert orders.construction(PRODUCT) == orders.Product(28, 68)


@pytest.mark.parametrize("size", [1, 2, 3 * 4, 20 * 8, 28 * 2, 52 * 4, 344 * 2])
def test_09_the_fast_transform_is_the_dense_product(size: int) -> None:
    transform = draw_signed(size, _generator())
    dense = hadamard_matrix(size).double() * transform.signs / size**0.5
    vectors = torch.randn(3, 5, size, generator=_generator(), dtype=torch.float64)
    assert torch.allclose(transform.apply(vectors), vectors @ dense.mT, atol=1e-12)
    assert torch.allclose(transform.inverse(vectors), vectors @ dense, atol=1e-12)


@pytest.mark.parametrize("size", BASE)
def test_09_a_transform_then_its_transpose_is_the_identity(size: int) -> None:
    transform = draw_signed(size, _generator())
    vectors = torch.randn(2, size, generator=_generator(), dtype=torch.float64)
    turned = transform.apply(vectors)
    assert torch.allclose(turned.norm(dim=-1), vectors.norm(dim=-1), rtol=1e-12)
    assert torch.allclose(transform.inverse(turned), vectors, atol=1e-12)
    assert torch.allclose(transform.apply(transform.inverse(vectors)), vectors, atol=1e-12)


def test_09_where_the_matrix_is_not_symmetric_the_transform_is_not_its_own_inverse() -> None:
    matrix = hadamard_matrix(12)
    assert not torch.equal(matrix, matrix.mT)
    transform = SignedHadamard(matrix, torch.ones(24, dtype=torch.int8))
    vectors = torch.randn(2, 24, generator=_generator(), dtype=torch.float64)
    assert not torch.allclose(transform.apply(transform.apply(vectors)), vectors, atol=0.1)
    assert torch.allclose(transform.inverse(transform.apply(vectors)), vectors, atol=1e-12)


def test_a_size_without_a_construction_is_named() -> None:
    for size in (3, 92, 184):
        assert orders.base_order(size) is None
        with pytest.raises(MethodError, match=f"no Hadamard matrix of size {size} "):
            draw_signed(size, _generator())
    with pytest.raises(MethodError, match="no Hadamard matrix of size 92 "):
        hadamard_matrix(92)


# --- bases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["both", "input"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_07_a_weight_that_is_not_rounded_comes_back(
    dtype: torch.dtype, tolerance: float, rescale: bool, sides: str
) -> None:
    weight, inputs = _problem(dtype=dtype)
    basis = make_basis(weight, inputs.mT @ inputs, HadamardIncohere(rescale=rescale, sides=sides), seed=3)
    turned = basis.of_weight(weight)
    assert (turned - weight).norm() > 0.1 * weight.norm()
    assert (basis.back(turned) - weight).norm() <= tolerance * weight.norm()


@pytest.mark.parametrize("sides", ["both", "input"])
def test_08_the_hessian_in_the_basis_is_that_of_the_inputs_in_the_basis(sides: str) -> None:
    weight, inputs = _problem()
    hessian = inputs.mT @ inputs / len(inputs)
    basis = make_basis(weight, hessian, HadamardIncohere(rescale=True, sides=sides), seed=4)
    turned = basis.of_inputs(inputs)
    assert torch.allclose(basis.of_hessian(hessian), turned.mT @ turned / len(inputs), rtol=1e-10, atol=1e-12)
    outputs = inputs @ weight.mT if sides == "input" else basis.left.apply(inputs @ weight.mT)
    assert torch.allclose(turned @ basis.of_weight(weight).mT, outputs, rtol=1e-8, atol=1e-10)


def test_23_a_basis_comes_back_from_its_seed() -> None:
    weight, _ = _problem()
    conf = HadamardIncohere()
    drawn, other = (make_basis(weight, None, conf, seed) for seed in (1, 2))
    again = draw_basis(weight.shape[0], weight.shape[1], conf, drawn.seed, None)
    assert torch.equal(drawn.of_weight(weight), again.of_weight(weight))
    assert not torch.allclose(drawn.of_weight(weight), other.of_weight(weight))


def test_one_outlier_is_spread_over_the_whole_matrix() -> None:
    """The largest of m n Gaussian entries is near sqrt(2 ln(m n)) = 4.7 RMS."""
    weight = torch.randn(256, 256, generator=_generator())
    weight[7, 9] = 60.0
    turned = make_basis(weight, None, HadamardIncohere(), seed=6).of_weight(weight)
    assert weight.abs().max() / weight.square().mean().sqrt() > 50
    assert turned.abs().max() / turned.square().mean().sqrt() < 1.5 * math.sqrt(2 * math.log(256 * 256))


def test_a_rescale_without_a_hessian_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a Hessian"):
        make_basis(torch.ones(4, 4), None, HadamardIncohere(rescale=True), seed=0)


def test_a_side_that_is_none_is_refused() -> None:
    method = MethodConf("m", "rotation", incohere=HadamardIncohere(sides="left"), round=GptqRound())
    assert refusals(method, UniformScheme(bits=3)) == ["method.incohere.sides=left: one of both, input"]


@pytest.mark.parametrize("module", [hadamard, random])
def test_a_model_s_rotation_is_orthogonal_and_drawn_anew_from_its_seed(module: object) -> None:
    draw = vars(module)["draw_orthogonal"]
    eye = torch.eye(24, dtype=torch.float64)
    dense = draw(24, 5).apply(eye)
    assert torch.allclose(dense @ dense.mT, eye, atol=1e-12)
    assert torch.equal(dense, draw(24, 5).apply(eye)) and not torch.allclose(dense, draw(24, 6).apply(eye))
    vectors = torch.randn(3, 24, generator=_generator(), dtype=torch.float64)
    assert torch.allclose(draw(24, 5).inverse(draw(24, 5).apply(vectors)), vectors, atol=1e-12)
