"""Round to nearest: each weight by itself, no data."""

from torch import Tensor

from conf.schema import RoundConf, SchemeConf
from workers.methods.grid import FitGrid
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def round_weight(weight: Tensor, statistics: Statistics, conf: RoundConf, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes of the nearest grid point, halves to even: [out, in] float32 or float64. Statistics are not used."""
    params = fit(weight)
    return Rounded(params.nearest(weight), params, stage="nearest")
