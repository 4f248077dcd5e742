"""SmoothQuant's closed form (Xiao et al. 2022, equation 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from conf.schema import SmoothScale
from workers.methods.scale.channels import Channels

SMALLEST = 1e-5


def scales(channels: Channels, weights: Sequence[Tensor], scale: SmoothScale) -> list[Tensor]:
    """max|x|^alpha / max|w|^(1 - alpha), [in]; nothing to choose from. weights: each [out, in], of one group."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=SMALLEST)
    return [(channels.max_abs.clamp(min=SMALLEST).pow(scale.alpha) / largest.pow(1 - scale.alpha)).clamp(min=SMALLEST)]
