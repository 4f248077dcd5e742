"""Steps of one size: AutoRound's optimizer (Cheng et al. 2023, section 3)."""

from collections.abc import Callable

import torch


class SignSGD(torch.optim.Optimizer):
    """Every entry moves by its group's `lr`, against the sign of its gradient; without momentum."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
