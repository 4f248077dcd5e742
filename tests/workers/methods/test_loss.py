"""The proxy loss against its meaning and its formula."""

import pytest
import torch

from conf.schema import GptqRound, MethodConf, UniformScheme
from workers.methods.linear import quantize_linear
from workers.methods.loss import COLUMNS_AT_ONCE, proxy_loss
from workers.methods.statistics import Statistics


def test_proxy_loss_is_the_mean_squared_change_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    error = torch.randn(4, 8, generator=generator, dtype=torch.float64)

    loss = proxy_loss(error, inputs.mT @ inputs / 50)

    torch.testing.assert_close(loss, float(((inputs @ error.mT) ** 2).sum() / 50))


def test_blocks_of_columns_add_up_to_the_trace() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = 2 * COLUMNS_AT_ONCE + 5
    half = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    error = torch.randn(3, columns, generator=generator, dtype=torch.float64)
    hessian = half + half.mT

    torch.testing.assert_close(proxy_loss(error, hessian), float((error @ hessian @ error.mT).trace()))


@pytest.mark.parametrize("outlier", [1.0, 1e3])
def test_float32_is_enough_where_gptq_hides_its_errors(outlier: float) -> None:
    """Inputs of a fifth of the rank with a mean and a channel far out: products cancel to a hundred-thousandth."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(1024, 50, generator=generator) @ torch.randn(50, 256, generator=generator)
    mixed[:, 3] *= outlier
    inputs = mixed / 7 + outlier * torch.randn(256, generator=generator) / 10
    hessian = inputs.mT @ inputs / 1024
    weight = torch.randn(64, 256, generator=generator)
    method = MethodConf("gptq", "compensation", round=GptqRound(damping=1e-4))
    quantized = quantize_linear(weight, Statistics(hessian), method, UniformScheme(bits=3, scale_dtype="float32"))

    error = (weight - quantized.dense).double()
    exact = proxy_loss(error, hessian)
    cancelling = float((error.abs() @ hessian.double().abs() * error.abs()).sum()) / exact

    assert cancelling > (3e2 if outlier == 1 else 1e4)
    assert quantized.outcome.proxy_loss == pytest.approx(exact, rel=2.0**-24 * cancelling)
