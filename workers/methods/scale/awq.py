"""AWQ: channels that carry large activations get a finer grid (Lin et al. 2023, section 3.2)."""

from collections.abc import Sequence

from torch import Tensor

from conf.schema import AwqScale
from workers.methods.scale.channels import Channels

SMALLEST = 1e-4  # of mean |x|^alpha: channels that are silent


def scales(channels: Channels, weights: Sequence[Tensor], scale: AwqScale) -> list[Tensor]:
    """mean|x|^alpha for alpha = 0, 1/grid, ... (1 - 1/grid), each [in], normalised so that sqrt(max s x min s) = 1.

    The first, all ones, is what rounding alone does; of equal losses the first wins. Weights are not used.
    """
    found = []
    for step in range(scale.grid):
        raw = channels.mean_abs.pow(step / scale.grid).clamp(min=SMALLEST)
        found.append(raw / (raw.max() * raw.min()).sqrt())
    return found
