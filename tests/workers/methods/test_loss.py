"""The proxy loss against its meaning and its formula."""

import torch

from workers.methods.loss import COLUMNS_AT_ONCE, proxy_loss


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
