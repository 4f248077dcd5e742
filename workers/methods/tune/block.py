"""What is trained of one linear, and the weights it makes of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import BlockTune, LearnedClip, MethodConf, UniformScheme
from workers.methods.clip import learned as learned_clip
from workers.methods.grid import group_ranges
from workers.methods.statistics import Learned
from workers.methods.tune.fake_quantize import fake_quantize, grid_for_ranges, range_ends

LARGEST_OFFSET = 0.5  # beyond half a step a weight would go to the level after the next


@dataclass(frozen=True)
class Parameter:
    """A tensor to train. learning_rate null: one over the number of steps. bounds: where it stays, null: anywhere."""

    tensor: Tensor
    learning_rate: float | None
    bounds: tuple[float, float] | None


class TunedLinear:
    """The parameters of one linear [out, in], float32, at their initial values."""

    def __init__(self, weight: Tensor, method: MethodConf, scheme: UniformScheme) -> None:
        tune, clip = method.tune, method.clip
        assert isinstance(tune, BlockTune)
        self._scheme, self._clip = scheme, clip
        self._ranges = group_ranges(weight, scheme)
        self.parameters: dict[str, Parameter] = {}
        if isinstance(clip, LearnedClip):
            for end in ("low", "high"):
                start = torch.full_like(self._ranges[0], clip.init).requires_grad_()
                self.parameters[end] = Parameter(start, clip.learning_rate, learned_clip.bounds(clip))
        if "rounding" in tune.learns:
            start = torch.zeros_like(weight).requires_grad_()
            self.parameters["offset"] = Parameter(start, tune.learning_rate, (-LARGEST_OFFSET, LARGEST_OFFSET))

    def quantized(self, weight: Tensor, *, moved: bool) -> Tensor:
        """The weight rounded with the parameters as they are, differentiable in them, and if `moved` in the weight.

        weight: [out, in] float32. moved: it is not the one given first, so that its ranges are other ones.
        """
        low, high = range_ends(weight, self._scheme) if moved else self._ranges
        learned = self._factors()
        if learned.low is not None and learned.high is not None:
            low, high = low * learned.low, high * learned.high
        scale, zero_point = grid_for_ranges(low, high, self._scheme)
        return fake_quantize(weight, scale, zero_point, learned.offset, 2**self._scheme.bits - 1)

    @torch.no_grad()
    def learned(self) -> Learned:
        """What rounding takes over, as tensors of its own."""
        found = self._factors()
        low, high, offset = (None if kept is None else kept.clone() for kept in (found.low, found.high, found.offset))
        return Learned(low, high, offset)

    def _factors(self) -> Learned:
        offset = self.parameters["offset"].tensor if "offset" in self.parameters else None
        if not isinstance(self._clip, LearnedClip):
            return Learned(offset=offset)
        low, high = (learned_clip.factors(self.parameters[end].tensor, self._clip) for end in ("low", "high"))
        return Learned(low, high, offset)
