"""GPTQ against the paper's loop, against LDLQ, and against what the theory expects. All in float64: codes are equal."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from conf.schema import GptqRound, MinmaxClip, NearestRound, UniformScheme
from kernels.column_rounding import round_columns
from kernels.factorization import unit_upper_factor
from workers.methods.clip.minmax import fit_grid
from workers.methods.grid import QuantParams, dequantize
from workers.methods.loss import proxy_loss
from workers.methods.round import gptq, nearest
from workers.methods.statistics import Statistics

PER_ROW = UniformScheme(bits=3)
GROUPS = UniformScheme(bits=3, group_size=16)


def _problem(out_features: int = 24, in_features: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight and Hessian of correlated inputs with uneven channels."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(in_features, in_features, generator=generator, dtype=torch.float64)
    channels = torch.rand(in_features, generator=generator, dtype=torch.float64) + 0.1
    inputs = torch.randn(2 * in_features, in_features, generator=generator, dtype=torch.float64) @ mixing * channels
    weight = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    return weight, inputs.mT @ inputs / len(inputs)


def _fit(scheme: UniformScheme) -> Callable[[Tensor], QuantParams]:
    return lambda weight: fit_grid(weight, MinmaxClip(), scheme)


def _codes(weight: Tensor, hessian: Tensor, conf: GptqRound, scheme: UniformScheme = PER_ROW) -> Tensor:
    return gptq.round_weight(weight, Statistics(hessian), conf, scheme, _fit(scheme)).codes


def _damped(hessian: Tensor, damping: float = 0.01) -> Tensor:
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def _step(target: Tensor, scale: Tensor, zero_point: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    code = (torch.round(target / scale) + zero_point).clamp(0, max_code)
    return code, scale * (code - zero_point)


def _paper_gptq(weight: Tensor, hessian: Tensor, scheme: UniformScheme, *, dynamic: bool = False) -> Tensor:
    """Algorithm 1 as printed, without column blocks: Cholesky, inverse, Cholesky, then a right-looking loop."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(hessian)))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weight, codes = weight.clone(), torch.zeros_like(weight)
    group_size = scheme.group_size or weight.shape[1]
    params = _fit(scheme)(weight)
    for i in range(weight.shape[1]):
        group = i // group_size
        if dynamic and i % group_size == 0:
            params, group = _fit(scheme)(weight[:, i : i + group_size]), 0
        group = 0 if dynamic else group
        scale, zero_point = params.scale[:, group].double(), params.zero_point[:, group].double()
        codes[:, i], rounded = _step(weight[:, i], scale, zero_point, params.max_code)
        weight[:, i:] -= torch.outer((weight[:, i] - rounded) / upper[i, i], upper[i, i:])
    return codes.to(torch.uint8)


def _reverse_ldlq(weight: Tensor, hessian: Tensor, params: QuantParams) -> Tensor:
    """LDLQ as in QuIP: H = (L + I) D (L + I)^T, last column first."""
    lower = torch.linalg.cholesky(hessian)
    feedback = lower / lower.diagonal()
    scale, zero_point = params.scale[:, 0].double(), params.zero_point[:, 0].double()
    codes, rounded = torch.zeros_like(weight), torch.zeros_like(weight)
    for i in reversed(range(weight.shape[1])):
        target = weight[:, i] + (weight[:, i + 1 :] - rounded[:, i + 1 :]) @ feedback[i + 1 :, i]
        codes[:, i], rounded[:, i] = _step(target, scale, zero_point, params.max_code)
    return codes.to(torch.uint8)


def _integer_grid(out_features: int) -> QuantParams:
    """Step 1 around code 128: no weight of these tests reaches its ends."""
    return QuantParams(torch.ones(out_features, 1), torch.full((out_features, 1), 128), bits=8, group_size=None)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", [PER_ROW, GROUPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_01_gptq_with_diagonal_hessian_equals_rtn(act_order: bool, scheme: UniformScheme, dtype: torch.dtype) -> None:
    weight, hessian = _problem()
    weight, diagonal = weight.to(dtype), torch.diag(hessian.diagonal()).to(dtype)

    plain = nearest.round_weight(weight, Statistics(), NearestRound(), scheme, _fit(scheme)).codes

    assert torch.equal(_codes(weight, diagonal, GptqRound(act_order=act_order), scheme), plain)


@pytest.mark.parametrize("conf", [GptqRound(), GptqRound(act_order=False, static_groups=False)])
@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_02_column_blocks_do_not_change_the_codes(conf: GptqRound, block_size: int) -> None:
    weight, hessian = _problem()
    blocked = GptqRound(act_order=conf.act_order, static_groups=conf.static_groups, block_size=block_size)

    assert torch.equal(_codes(weight, hessian, blocked, GROUPS), _codes(weight, hessian, conf, GROUPS))


@pytest.mark.parametrize("shape", [(24, 96), (5, 33), (1, 1), (64, 144)])
def test_codes_are_those_of_the_paper(shape: tuple[int, int]) -> None:
    weight, hessian = _problem(*shape)

    assert torch.equal(_codes(weight, hessian, GptqRound(act_order=False)), _paper_gptq(weight, hessian, PER_ROW))


def test_codes_with_act_order_are_those_of_the_paper_on_sorted_columns() -> None:
    weight, hessian = _problem()
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)

    codes = _codes(weight, hessian, GptqRound())

    assert torch.equal(codes[:, order], _paper_gptq(weight[:, order], hessian[order][:, order], PER_ROW))


def test_codes_with_static_groups_are_those_of_the_paper() -> None:
    weight, hessian = _problem()

    codes = _codes(weight, hessian, GptqRound(act_order=False), GROUPS)

    assert torch.equal(codes, _paper_gptq(weight, hessian, GROUPS))


def test_item_23_dynamic_groups_are_fitted_on_fully_compensated_weights() -> None:
    weight, hessian = _problem()

    codes = _codes(weight, hessian, GptqRound(act_order=False, static_groups=False), GROUPS)

    assert torch.equal(codes, _paper_gptq(weight, hessian, GROUPS, dynamic=True))
    assert not torch.equal(codes, _paper_gptq(weight, hessian, GROUPS))


@pytest.mark.parametrize("bounded", [True, False])
def test_03_gptq_is_ldlq_in_forward_order(bounded: bool) -> None:
    weight, hessian = _problem()
    params = _fit(PER_ROW)(weight) if bounded else _integer_grid(24)

    codes = gptq.round_weight(weight, Statistics(hessian), GptqRound(act_order=False), PER_ROW, lambda _: params).codes

    flipped = _reverse_ldlq(weight.flip(1), _damped(hessian).flip(0, 1), params)
    assert torch.equal(codes, flipped.flip(1))


@pytest.mark.parametrize("bounded", [True, False])
def test_03_reverse_ldlq_is_gptq_on_flipped_columns(bounded: bool) -> None:
    weight, hessian = _problem()
    params = _fit(PER_ROW)(weight) if bounded else _integer_grid(24)

    flipped = gptq.round_weight(
        weight.flip(1), Statistics(hessian.flip(0, 1)), GptqRound(act_order=False), PER_ROW, lambda _: params
    ).codes

    assert torch.equal(_reverse_ldlq(weight, _damped(hessian), params), flipped.flip(1))


def test_04_expected_losses_on_an_unbounded_grid_are_a_twelfth_of_the_traces() -> None:
    out_features, in_features, losses, expected = 64, 48, torch.zeros(2), torch.zeros(2)
    for seed in range(20):
        weight, hessian = _problem(out_features, in_features, seed)
        weight = 8 * weight  # spread over many steps, so that rounding errors are uniform
        grid = _integer_grid(out_features)
        found = unit_upper_factor(hessian)
        assert found is not None
        factor, _ = found
        inverse = torch.linalg.inv(factor)
        codes = round_columns(
            weight,
            factor,
            grid.scale,
            grid.zero_point,
            torch.zeros(in_features, dtype=torch.int64),
            max_code=255,
            block_size=128,
        )
        losses[0] += proxy_loss(weight - dequantize(codes, grid, torch.float64), hessian)
        losses[1] += proxy_loss(weight - weight.round(), hessian)
        expected[0] += out_features / 12 * (inverse @ hessian @ inverse.mT).trace()
        expected[1] += out_features / 12 * hessian.trace()

    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0)
    assert losses[0] < losses[1]


@pytest.mark.parametrize("factor", [1e-3, 0.37, 2.0, 1e5])
def test_05_scale_of_the_hessian_does_not_matter(factor: float) -> None:
    weight, hessian = _problem()

    assert torch.equal(_codes(weight, factor * hessian, GptqRound()), _codes(weight, hessian, GptqRound()))


def test_05_order_of_the_columns_does_not_matter_with_act_order() -> None:
    weight, hessian = _problem()
    shuffle = torch.randperm(96, generator=torch.Generator().manual_seed(1))

    shuffled = _codes(weight[:, shuffle], hessian[shuffle][:, shuffle], GptqRound())

    assert torch.equal(shuffled, _codes(weight, hessian, GptqRound())[:, shuffle])


def test_act_order_with_equal_diagonal_entries_keeps_the_order() -> None:
    weight, hessian = _problem()
    spread = hessian.diagonal().sqrt()
    correlation = hessian / spread.outer(spread)
    correlation.fill_diagonal_(1.0)

    ordered = _codes(weight, correlation, GptqRound(), GROUPS)

    assert torch.equal(ordered, _codes(weight, correlation, GptqRound(act_order=False), GROUPS))


def test_19_every_group_has_at_most_two_to_the_bits_values() -> None:
    weight, hessian = _problem()

    rounded = gptq.round_weight(weight, Statistics(hessian), GptqRound(), GROUPS, _fit(GROUPS))

    for group in rounded.params.values(rounded.codes).reshape(-1, 16):
        assert len(group.unique()) <= 8


@pytest.mark.parametrize("conf", [GptqRound(), GptqRound(act_order=False, static_groups=False)])
def test_23_same_input_twice_gives_the_same_codes_and_leaves_the_input_alone(conf: GptqRound) -> None:
    weight, hessian = (tensor.float() for tensor in _problem())
    before = weight.clone(), hessian.clone()

    first, second = (_codes(weight, hessian, conf, GROUPS) for _ in range(2))

    assert torch.equal(first, second)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


@pytest.mark.parametrize("conf", [GptqRound(), GptqRound(act_order=False, static_groups=False)])
def test_dead_columns_become_zero_and_leave_the_others_alone(conf: GptqRound) -> None:
    weight, hessian = _problem(in_features=80)
    dead = torch.randn(24, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = torch.zeros(96, 96, dtype=torch.float64)
    padded[:80, :80] = hessian

    rounded = gptq.round_weight(torch.cat([weight, dead], 1), Statistics(padded), conf, GROUPS, _fit(GROUPS))

    assert torch.equal(rounded.codes[:, :80], _codes(weight, hessian, conf, GROUPS))
    assert torch.equal(rounded.params.values(rounded.codes)[:, 80:], torch.zeros(24, 16))


def test_compensation_lowers_the_loss_below_rtn() -> None:
    weight, hessian = _problem(out_features=64)
    scheme = UniformScheme(bits=4)

    compensated = gptq.round_weight(weight, Statistics(hessian), GptqRound(), scheme, _fit(scheme))
    plain = nearest.round_weight(weight, Statistics(), NearestRound(), scheme, _fit(scheme))

    ours, theirs = (proxy_loss(weight - r.params.values(r.codes, torch.float64), hessian) for r in (compensated, plain))
    assert ours < 0.8 * theirs
