"""How far a quantized block's output is from the original one's."""

from collections.abc import Callable

import torch
from torch import Tensor


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference over all elements; both [..., hidden] float32."""
    return torch.nn.functional.mse_loss(output, target)


def mse_cosine(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference - ln |mean over tokens of the cosine between the two| (LRQuant, Zhao et al. 2024)."""
    cosine = torch.nn.functional.cosine_similarity(output, target, dim=-1)
    return mse(output, target) - cosine.mean().abs().log()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "mse_cosine": mse_cosine}
