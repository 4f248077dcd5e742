"""GPTAQ against its definition, and where it must be GPTQ."""

from dataclasses import replace

import torch
from torch import Tensor

from conf.schema import GptaqRound, GptqRound, MinmaxClip, UniformScheme
from workers.methods.clip.minmax import fit_grid
from workers.methods.grid import QuantParams
from workers.methods.round import gptaq, gptq
from workers.methods.statistics import Statistics

SCHEME = UniformScheme(bits=3, scale_dtype="float32")
IN_ORDER = GptaqRound(act_order=False)


def _fit(weight: Tensor) -> QuantParams:
    return fit_grid(weight, MinmaxClip(), SCHEME)


def _problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight [16, 24], inputs [240, 24] in the quantized and in the full-precision model."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    inputs = torch.randn(240, 24, generator=generator, dtype=torch.float64) @ mixing
    changed = inputs + 0.3 * inputs.std() * torch.randn(240, 24, generator=generator, dtype=torch.float64)
    return torch.randn(16, 24, generator=generator, dtype=torch.float64), changed, inputs


def _statistics(inputs: Tensor, original: Tensor) -> Statistics:
    return Statistics(inputs.mT @ inputs / len(inputs), (original - inputs).mT @ inputs / len(inputs))


def test_14_equal_inputs_are_gptq() -> None:
    weight, inputs, _ = _problem()
    plain = gptq.round_weight(weight, _statistics(inputs, inputs), GptqRound(), SCHEME, _fit).codes
    assert torch.equal(gptaq.round_weight(weight, _statistics(inputs, inputs), GptaqRound(), SCHEME, _fit).codes, plain)


def test_14_alpha_zero_is_gptq() -> None:
    weight, inputs, original = _problem()
    statistics = _statistics(inputs, original)
    plain = gptq.round_weight(weight, statistics, GptqRound(), SCHEME, _fit).codes
    assert torch.equal(gptaq.round_weight(weight, statistics, GptaqRound(alpha=0.0), SCHEME, _fit).codes, plain)


def test_codes_are_those_of_the_right_looking_algorithm() -> None:
    """e_i = (w_i - q_i) / U_ii, later columns lose e_i U_ij and gain w_i P_ij; w_i as compensated so far."""
    weight, inputs, original = _problem()
    statistics = _statistics(inputs, original)
    hessian, cross = statistics.hessian, statistics.cross_hessian
    assert hessian is not None and cross is not None
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    passed_on = 0.25 * (cross @ upper.mT).triu(1) @ upper
    params, current, codes = _fit(weight), weight.clone(), torch.zeros_like(weight)
    scale, zero = params.scale[:, 0].double(), params.zero_point[:, 0].double()
    for i in range(24):
        codes[:, i] = (torch.round(current[:, i] / scale) + zero).clamp(0, 7)
        error = (current[:, i] - scale * (codes[:, i] - zero)) / upper[i, i]
        current[:, i + 1 :] += torch.outer(current[:, i], passed_on[i, i + 1 :]) - torch.outer(error, upper[i, i + 1 :])
    for block_size in (1, 5, 128):
        conf = replace(IN_ORDER, block_size=block_size)
        assert torch.equal(gptaq.round_weight(weight, statistics, conf, SCHEME, _fit).codes, codes.byte())


def test_outputs_are_nearer_to_the_original_ones_than_gptqs() -> None:
    """On average: of ten problems, the sum of ||W X_fp - Q X_q||^2."""
    totals = {0.0: 0.0, 1.0: 0.0}
    for seed in range(10):
        weight, inputs, original = _problem(seed)
        for alpha in totals:
            rounded = gptaq.round_weight(
                weight, _statistics(inputs, original), GptaqRound(alpha=alpha), UniformScheme(bits=4), _fit
            )
            difference = original @ weight.mT - inputs @ rounded.params.values(rounded.codes, torch.float64).mT
            totals[alpha] += float(difference.square().mean())
    assert totals[1.0] < totals[0.0]
