"""Where learned channel scales start: OmniQuant's equivalent transformation (Shao et al. 2023, section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from conf.schema import LearnedScale, SmoothScale
from workers.methods.scale import smooth
from workers.methods.scale.channels import Channels

SMALLEST = 1e-2  # of a scale, before and during training


def scales(channels: Channels, weights: Sequence[Tensor], scale: LearnedScale) -> list[Tensor]:
    """The one starting point, [in]: SmoothQuant's closed form, or a / log2(2 + a) with a = max|x| (LRQuant, `log`)."""
    if scale.init == "log":
        start = channels.max_abs / torch.log2(2 + channels.max_abs)
    else:
        (start,) = smooth.scales(channels, weights, SmoothScale(scale.alpha))
    return [start.clamp(min=SMALLEST)]
