"""What calibration says of the input channels of a group of linears."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """mean_abs, max_abs: [in] float32, mean and maximum of |x| over tokens."""

    mean_abs: Tensor
    max_abs: Tensor
