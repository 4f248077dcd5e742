"""What calibration says of one linear."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Learned:
    """What training the block found for one linear; null: not learned.

    low, high: [out, groups], what is left of the lower and of the upper end of each range. offset: [out, in], added to
    the weights before they are rounded, in steps of their grid. degraded: why these are the initial values, or null.
    """

    low: Tensor | None = None
    high: Tensor | None = None
    offset: Tensor | None = None
    degraded: str | None = None


@dataclass(frozen=True)
class Statistics:
    """Only what a method needs is there.

    hessian: [in, in], mean over tokens of x x^T, undamped. cross_hessian: [in, in], mean of (x_fp - x) x^T, x_fp being
    the input in the full-precision model. inputs: [tokens, in], a sample of the inputs. num_tokens: of the Hessian.
    learned: what slot tune found, on the same calibration. degraded: why not all of it is of the linear's own inputs,
    or null.
    """

    hessian: Tensor | None = None
    cross_hessian: Tensor | None = None
    inputs: Tensor | None = None
    num_tokens: int = 0
    learned: Learned | None = None
    degraded: str | None = None
