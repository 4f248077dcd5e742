"""The grid of the whole range."""

from torch import Tensor

from conf.schema import MinmaxClip
from workers.methods.grid import GridScheme, QuantParams, group_ranges, params_for_ranges, storable
from workers.methods.statistics import Statistics


def fit_grid(weight: Tensor, clip: MinmaxClip, scheme: GridScheme, statistics: Statistics | None = None) -> QuantParams:
    """Lowest and highest weight of each row and group become the ends of its grid (Frantar et al. 2023).

    weight: [out, in] float32 or float64. Raises MethodError when a scale cannot be stored.
    One deviation for symmetric grids: the original mirrors the range only where a group has a negative weight, so that
    a group of positive weights saturates at half its maximum; here it is mirrored always.
    """
    return storable(params_for_ranges(*group_ranges(weight, scheme), scheme), scheme)
