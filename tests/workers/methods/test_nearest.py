"""Round to nearest."""

import torch

from conf.schema import MinmaxClip, NearestRound, UniformScheme
from workers.methods.clip.minmax import fit_grid
from workers.methods.round.nearest import round_weight
from workers.methods.statistics import Statistics


def test_every_weight_goes_to_its_nearest_level() -> None:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    scheme = UniformScheme(bits=3, group_size=8)

    rounded = round_weight(weight, Statistics(), NearestRound(), scheme, lambda w: fit_grid(w, MinmaxClip(), scheme))

    every_code = torch.arange(8, dtype=torch.uint8).repeat(5, 3)  # levels of the three groups, side by side
    levels = rounded.params.values(every_code).reshape(5, 3, 1, 8)
    nearest = (weight.reshape(5, 3, 8, 1) - levels).abs().argmin(-1)
    assert torch.equal(rounded.codes.reshape(5, 3, 8).long(), nearest)
    assert (rounded.stage, rounded.damping, rounded.degraded) == ("nearest", None, None)
