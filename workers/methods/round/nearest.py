"""Round to nearest: each weight by itself, no data."""

from torch import Tensor

from conf.schema import RoundConf, SchemeConf
from workers.methods.grid import FitGrid, quantize
from workers.methods.round.rounded import Rounded


def round_weight(weight: Tensor, hessian: Tensor | None, conf: RoundConf, scheme: SchemeConf, fit: FitGrid) -> Rounded:
    """Codes of the nearest grid point, halves to even. weight: [out, in] float32 or float64; hessian is not used."""
    params = fit(weight)
    return Rounded(quantize(weight, params), params, stage="nearest")
