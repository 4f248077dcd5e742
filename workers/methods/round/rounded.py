"""What a rounding stage hands back."""

from dataclasses import dataclass

from torch import Tensor

from workers.methods.grid import Params


@dataclass(frozen=True)
class Rounded:
    """Codes [out, in] uint8 with their grids, and what was really done.

    stage: name of the rounding that ran. damping: what was added to the Hessian's diagonal, as a fraction of its mean,
    null where none was used. damping_retries: how often it was raised. degraded: what differs from the label, or null.
    """

    codes: Tensor
    params: Params
    stage: str
    damping: float | None = None
    damping_retries: int = 0
    degraded: str | None = None
