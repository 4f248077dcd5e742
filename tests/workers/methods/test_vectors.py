"""LDLQ over vectors of columns: with one column it is LDLQ, with eight its definition, and its passes only improve."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from conf.schema import LdlqRound, MinmaxClip, UniformScheme, VectorCodebookScheme
from workers.methods.clip import minmax
from workers.methods.codebook import fit_codebook
from workers.methods.errors import IndefiniteHessianError
from workers.methods.factor import damp, factor_damped
from workers.methods.grid import QuantParams
from workers.methods.loss import proxy_loss
from workers.methods.round import ldlq
from workers.methods.round.rounded import Rounded
from workers.methods.round.vectors import feedback_of_vectors, improve_vectors, round_vectors
from workers.methods.statistics import Statistics

PER_ROW = UniformScheme(bits=2, scale_dtype="float32")
E8P = VectorCodebookScheme(bits=2)
OUT, IN = 12, 48


def _problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(IN, IN, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2 * IN, IN, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(OUT, IN, generator=generator, dtype=torch.float64), inputs.mT @ inputs / len(inputs)


def _lower(hessian: Tensor) -> Tensor:
    """Unit lower L of the damped H = L D L^T."""
    return factor_damped(hessian.flip(0, 1), 0.01).feedback.flip(0, 1)


def _fit(weight: Tensor) -> QuantParams:
    return minmax.fit_grid(weight, MinmaxClip(), PER_ROW)


def _rounded(passes: int, block_size: int = 128, bits: int = 2) -> Rounded:
    weight, hessian = _problem()
    conf = LdlqRound(greedy_passes=passes, block_size=block_size)
    scheme = VectorCodebookScheme(bits=bits)
    return ldlq.round_weight(weight, Statistics(hessian), conf, scheme, lambda w: fit_codebook(w, 1 / 1.03, bits))


@pytest.mark.parametrize("size", [1, 8])
def test_the_factor_has_identities_on_its_diagonal_and_makes_the_hessian_block_diagonal(size: int) -> None:
    _, hessian = _problem()
    damped = damp(hessian, 0.01)
    feedback = feedback_of_vectors(_lower(hessian), size)
    inverse = torch.linalg.inv(feedback)
    blocks = (inverse @ damped @ inverse.mT).unflatten(0, (-1, size)).unflatten(2, (-1, size))
    for i in range(IN // size):
        own = feedback[i * size : (i + 1) * size, i * size : (i + 1) * size]
        assert torch.allclose(own, torch.eye(size, dtype=torch.float64), atol=1e-12)
        others = [j for j in range(IN // size) if j != i]
        assert float(blocks[i][:, others].abs().max()) < 1e-9 * float(blocks.abs().max())


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_vectors_of_one_column_on_a_grid_of_integers_are_ldlq(passes: int) -> None:
    weight, hessian = _problem()
    params = _fit(weight)
    codes = round_vectors(weight, feedback_of_vectors(_lower(hessian), 1), params, size=1, block_size=8)
    for _ in range(passes):
        codes = improve_vectors(weight, codes, damp(hessian, 0.01), params, size=1, block_size=8)
    expected = ldlq.round_weight(weight, Statistics(hessian), LdlqRound(greedy_passes=passes), PER_ROW, _fit)
    assert torch.equal(codes, expected.codes)


def test_codes_of_vectors_are_those_of_the_definition() -> None:
    """Q_k nearest to W_k + (W_i - Q_i for i > k) L_ik, L = C with each panel times its diagonal block's inverse."""
    weight, hessian = _problem()
    params = fit_codebook(weight, 1 / 1.03, 2)
    lower = torch.linalg.cholesky(damp(hessian, 0.01))
    values = torch.zeros_like(weight)
    for k in range(IN - 8, -1, -8):
        panel = lower[:, k : k + 8] @ torch.linalg.inv(lower[k : k + 8, k : k + 8])
        target = weight[:, k : k + 8] + (weight - values)[:, k + 8 :] @ panel[k + 8 :]
        values[:, k : k + 8] = params.values(params.nearest(target), torch.float64)
    found = _rounded(passes=0)
    assert torch.equal(found.params.values(found.codes, torch.float64), values)


@pytest.mark.parametrize("passes", [0, 2])
def test_02_the_column_block_changes_no_code(passes: int) -> None:
    whole = _rounded(passes)
    assert whole.codes.dtype == torch.int32 and list(whole.codes.shape) == [OUT, IN // 8, 1]
    for block_size in (1, 16, 40):
        assert torch.equal(_rounded(passes, block_size).codes, whole.codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_06_passes_never_raise_the_loss_and_end_at_a_fixed_point(bits: int) -> None:
    weight, hessian = _problem()
    damped = damp(hessian, 0.01)

    def loss(passes: int) -> float:
        found = _rounded(passes, bits=bits)
        return proxy_loss(weight - found.params.values(found.codes, torch.float64), damped)

    losses = [loss(passes) for passes in range(5)]
    assert losses[1] < losses[0]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))
    assert torch.equal(_rounded(40, bits=bits).codes, _rounded(41, bits=bits).codes)


def test_an_uncorrelated_input_leaves_the_nearest_vectors() -> None:
    weight, _ = _problem()
    params = fit_codebook(weight, 1 / 1.03, 2)
    codes = round_vectors(weight, torch.eye(IN, dtype=torch.float64), params, size=8, block_size=16)
    assert torch.equal(codes, params.nearest(weight))
    assert torch.equal(
        improve_vectors(weight, codes, torch.eye(IN, dtype=torch.float64), params, size=8, block_size=16), codes
    )


def test_22_an_indefinite_hessian_fails_or_is_rounded_to_nearest_and_degraded() -> None:
    weight, _ = _problem()
    hopeless = Statistics(-torch.eye(IN, dtype=torch.float64))

    def rounded(on_failure: str) -> Rounded:
        conf = LdlqRound(on_failure=on_failure)
        return ldlq.round_weight(weight, hopeless, conf, E8P, lambda w: fit_codebook(w, 1 / 1.03, 2))

    with pytest.raises(IndefiniteHessianError):
        rounded("fail")
    degraded = rounded("diagonal")
    assert degraded.degraded is not None and degraded.stage == "nearest"
