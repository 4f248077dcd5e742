"""Round to nearest: each weight by itself, no data."""

from torch import Tensor

from conf.schema import RoundConf, SchemeConf
from workers.methods.grid import FitGrid, QuantParams, quantize
from workers.methods.round.rounded import Rounded
from workers.methods.statistics import Statistics


def round_weight(weight: Tensor, statistics: Statistics, conf: RoundConf, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes of the nearest grid point, halves to even: [out, in] float32 or float64.

    Of the statistics the learned offsets, where there are any: a weight goes to the level nearest to it and its offset.
    """
    params = fit(weight)
    offset = None if statistics.learned is None else statistics.learned.offset
    if offset is None:
        return Rounded(params.nearest(weight), params, stage="nearest")
    assert isinstance(params, QuantParams)
    return Rounded(quantize(weight, params, offset), params, stage="nearest")
