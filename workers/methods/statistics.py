"""What calibration says of the input of a linear."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Only what a method needs is there.

    hessian: [in, in], mean over tokens of x x^T, undamped. cross_hessian: [in, in], mean of (x_fp - x) x^T, x_fp being
    the input in the full-precision model. inputs: [tokens, in], a sample of the inputs. num_tokens: of the Hessian.
    """

    hessian: Tensor | None = None
    cross_hessian: Tensor | None = None
    inputs: Tensor | None = None
    num_tokens: int = 0
