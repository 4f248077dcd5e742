"""Muon: momentum whose update is orthogonalised, for hidden weight matrices (Jordan et al. 2024)."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of Jordan et al. 2024: steep at zero, singular values end within about [0.7, 1.2].
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearly U V^T of each matrix U S V^T. matrices: [n, rows, columns], any float dtype -> same shape, float32."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    flat: Tensor = x if wide else x.mT
    return flat.float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)); decoupled weight decay.

    Takes matrices [rows, columns] and stacks of them [n, rows, columns]; raises ValueError for anything else.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        matrices = list(params)
        for index, matrix in enumerate(matrices):
            if matrix.ndim not in (2, 3):
                raise ValueError(f"parameter {index} has shape {list(matrix.shape)}; Muon updates matrices only")
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append(param)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, float]) -> None:
        """Equal shapes go through one batched orthogonalisation, which is what makes Muon cheap on few cores."""
        directions = []
        for param in params:
            assert param.grad is not None
            buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
            buffer.lerp_(param.grad, 1 - group["momentum"])
            directions.append(param.grad.lerp(buffer, group["momentum"]))
        shape = params[0].shape
        rows, columns = shape[-2:]
        scale = max(1.0, rows / columns) ** 0.5
        flat = orthogonalise(torch.stack(directions).view(-1, rows, columns))
        for param, update in zip(params, flat.view(len(params), *shape), strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update, alpha=-group["lr"] * scale)
