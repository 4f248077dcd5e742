"""Slot tune over one block: its linears' grids, offsets and channel scales trained against the original block.

The block runs on what the quantized blocks before it make, with fake-quantized weights, and is to give what the
original block gave on what the original blocks before it made (OmniQuant, Shao et al. 2023; AutoRound, Cheng et al.
2023). Everything is float32, whatever the calibration's dtype.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import BlockTune, LearnedScale, MethodConf, UniformScheme
from kernels.precision import full_float32
from workers.arch import LinearGroup
from workers.errors import NumericalError
from workers.methods.scale.learned import SMALLEST
from workers.methods.statistics import Learned
from workers.methods.tune.block import Parameter, TunedLinear
from workers.methods.tune.loss import LOSSES
from workers.methods.tune.sign_sgd import SignSGD
from workers.scaling import folded

log = logging.getLogger(__name__)

JUDGED = 16  # windows, evenly spread, on which the parameters at the end of each pass are compared
BAD_STEPS = 3  # with a loss or gradient that is not finite, before training starts anew and then is given up


@dataclass(frozen=True)
class Samples:
    """Calibration windows, each [length, hidden], on the host.

    inputs: as the quantized blocks before make them. targets: what the original model has after this block. own: what
    the original block makes of the inputs; empty where no loss asks for it.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    own: list[Tensor]

    @classmethod
    def of(cls, *batches: list[Tensor]) -> "Samples":
        """From batches [b, length, hidden], of which the windows are views."""
        return cls(*([window for batch in kind for window in batch] for kind in batches))


@dataclass(frozen=True)
class Tuned:
    """What training found.

    learned: by linear. scales: [in] of each group, to be folded in this order. words: for the reports; the number is
    how much of the initial loss is left.
    """

    learned: dict[str, Learned] = field(default_factory=dict)
    scales: list[tuple[LinearGroup, Tensor]] = field(default_factory=list)
    words: str | None = None


class TunedBlock:
    """A block with weights that are rounded, differentiable in everything that is trained."""

    def __init__(
        self,
        block: nn.Module,
        linears: Sequence[str],
        method: MethodConf,
        scheme: UniformScheme,
        scales: Sequence[tuple[LinearGroup, Tensor]],
        head_dim: int,
    ) -> None:
        """scales: [in], what learned channel scales start from; the block itself stays as it is."""
        self._block, self._head_dim = block, head_dim
        self._fixed = {name: parameter.detach().float() for name, parameter in block.named_parameters()}
        self.linears = {name: TunedLinear(self._fixed[f"{name}.weight"], method, scheme) for name in linears}
        rate = method.scale.learning_rate if isinstance(method.scale, LearnedScale) else None
        self._scales = [
            (group, Parameter(scale.float().clone().requires_grad_(), rate, (SMALLEST, math.inf)))
            for group, scale in scales
        ]

    def parameters(self) -> dict[tuple[str, str], Parameter]:
        """By what it belongs to, a linear or a group's first linear, and its name."""
        found = {(name, part): p for name, linear in self.linears.items() for part, p in linear.parameters.items()}
        return found | {(group.linears[0], "scale"): parameter for group, parameter in self._scales}

    def state(self) -> dict[str, Tensor]:
        """Every parameter of the block as it would be, by name."""
        state = dict(self._fixed)
        for group, scale in self.scales():
            state |= folded(state, group, scale, self._head_dim)
        moved = bool(self._scales)
        rounded = {
            f"{n}.weight": linear.quantized(state[f"{n}.weight"], moved=moved) for n, linear in self.linears.items()
        }
        return state | rounded

    def scales(self) -> list[tuple[LinearGroup, Tensor]]:
        """Channel scales [in] as they are; columns that read one output of the op before have one value."""
        return [(group, self._tied(group, parameter.tensor)) for group, parameter in self._scales]

    def _tied(self, group: LinearGroup, scale: Tensor) -> Tensor:
        repeats = len(scale) // len(self._fixed[f"{group.prev_op}.weight"])
        if repeats <= 1:
            return scale
        heads = scale.reshape(-1, repeats, self._head_dim)
        return heads[:, :1].expand_as(heads).reshape(-1)

    def run(self, state: dict[str, Tensor], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The block's output with the parameters of `state`: [b, L, hidden] float32."""
        output = torch.func.functional_call(self._block, state, (hidden,), kwargs)
        tensor: Tensor = output[0] if isinstance(output, tuple) else output
        return tensor


class _DivergedError(Exception):
    """Too many steps in which something was not finite."""


class _Training:
    """The steps over one block."""

    def __init__(
        self,
        block: TunedBlock,
        tune: BlockTune,
        samples: Samples,
        kwargs: dict[str, Any],
        seed: int,
        where: str,
        seldom_reached: frozenset[str],
    ) -> None:
        self._block, self._tune, self._samples, self._where = block, tune, samples, where
        self._parameters = block.parameters()
        self._device = next(iter(self._parameters.values())).tensor.device
        self._kwargs = {name: _float32(value) for name, value in kwargs.items()}
        self._loss: Callable[[Tensor, Tensor], Tensor] = LOSSES[tune.loss]
        self._generator = torch.Generator().manual_seed(seed)
        self._steps_per_pass = math.ceil(len(samples.inputs) / tune.batch_size)
        self.num_steps = tune.iterations or tune.epochs * self._steps_per_pass
        self._judged = self._judged_batches()
        self._unreached, self._seldom_reached = set(self._parameters), seldom_reached
        self._rate = 1.0  # of all learning rates

    def run(self) -> tuple[float, str | None]:
        """Train; returns how much of the initial loss is left, and why nothing was trained, or null."""
        losses = self._judge()
        self._judged = [batch for batch, loss in zip(self._judged, losses, strict=True) if math.isfinite(loss)]
        first = math.fsum(filter(math.isfinite, losses))
        if not self._judged:
            return 1.0, "not trained: the loss is not finite before the first step"
        initial = self._snapshot()
        for _ in range(2):
            try:
                best = self._attempt(first)
            except _DivergedError:
                self._restore(initial)
                log.warning("%s: training diverged; back to the start, rates at %g", self._where, self._rate)
            else:
                return best / first if first else 1.0, None
        return 1.0, f"not trained: {2 * BAD_STEPS} steps had a loss or gradient that is not finite"

    def _attempt(self, best: float) -> float:
        """All steps; the parameters end as those of the pass after which the judged windows had the smallest loss."""
        optimizer = self._optimizer()
        kept, bad, losses = self._snapshot(), 0, list[float]()
        order: list[list[int]] = []
        for step in range(self.num_steps):
            if not order:
                order = self._order()
            loss = self._step(order.pop(0), optimizer, step)
            losses.append(loss)
            bad += not math.isfinite(loss)
            if bad == BAD_STEPS:
                raise _DivergedError
            if not order or step + 1 == self.num_steps:
                judged = math.fsum(self._judge())
                self._report(step + 1, losses, judged / len(self._judged))
                losses.clear()
                if judged < best:
                    best, kept = judged, self._snapshot()
        self._restore(kept)
        return best

    def _report(self, step: int, losses: list[float], judged: float) -> None:
        """The end of a pass. Raises NumericalError when it has left a parameter alone."""
        mean = math.fsum(losses) / len(losses)
        log.info("%s: step %d of %d: loss %.6g, judged %.6g", self._where, step, self.num_steps, mean, judged)
        unreached = {key for key in self._unreached if key[0] not in self._seldom_reached}
        if unreached and any(map(math.isfinite, losses)):
            linear, part = min(unreached)
            raise NumericalError(
                f"no gradient reaches its learned {part}: does the block compute with this linear's weight at all?",
                layer=f"{self._where}.{linear}",
            )

    def untouched(self, linear: str) -> str | None:
        """Why something of a linear was not trained, or null."""
        if linear not in self._seldom_reached or not self.num_steps:
            return None
        left = sorted(part for name, part in self._unreached if name == linear)
        return f"not trained: no token reaches its learned {', '.join(left)}" if left else None

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [p.tensor], "base": 1 / max(self.num_steps, 1) if p.learning_rate is None else p.learning_rate}
            for p in self._parameters.values()
        ]
        if self._tune.optimizer == "signsgd":
            return SignSGD(groups, {"lr": 0.0})
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=0)

    def _order(self) -> list[list[int]]:
        """The windows of every batch of one pass."""
        order: list[int] = torch.randperm(len(self._samples.inputs), generator=self._generator).tolist()
        return _batches(order, self._tune.batch_size)

    def _step(self, windows: list[int], optimizer: torch.optim.Optimizer, step: int) -> float:
        """One step down; where loss or gradient is not finite it is not taken and halves the learning rates."""
        optimizer.zero_grad()
        loss = self._loss_of(windows, self._block.state())
        loss.backward()
        if not torch.isfinite(loss + sum(_grad(p).sum() for p in self._parameters.values())):
            self._rate /= 2
            return math.nan
        self._unreached -= {key for key in self._unreached if _grad(self._parameters[key]).any()}
        decay = 1 - step / self.num_steps if self._tune.optimizer == "signsgd" else 1.0
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * decay * self._rate
        optimizer.step()
        with torch.no_grad():
            for parameter in self._parameters.values():
                if parameter.bounds is not None:
                    parameter.tensor.clamp_(*parameter.bounds)
        return float(loss.detach())

    def _loss_of(self, windows: Sequence[int], state: dict[str, Tensor]) -> Tensor:
        output = self._block.run(state, self._batch(self._samples.inputs, windows), self._kwargs)
        loss = self._loss(output, self._batch(self._samples.targets, windows))
        if self._samples.own:
            loss = loss + torch.nn.functional.mse_loss(output, self._batch(self._samples.own, windows))
        return loss

    def _batch(self, rows: list[Tensor], windows: Sequence[int]) -> Tensor:
        return torch.stack([rows[i] for i in windows]).to(self._device, torch.float32)

    @torch.no_grad()
    def _judge(self) -> list[float]:
        """The loss of each judged batch with the parameters as they are."""
        state = self._block.state()
        return [float(self._loss_of(batch, state)) for batch in self._judged]

    def _judged_batches(self) -> list[list[int]]:
        count = len(self._samples.inputs)
        windows = [i * count // JUDGED for i in range(JUDGED)] if count > JUDGED else list(range(count))
        return _batches(windows, self._tune.batch_size)

    def _snapshot(self) -> list[Tensor]:
        return [parameter.tensor.detach().clone() for parameter in self._parameters.values()]

    @torch.no_grad()
    def _restore(self, snapshot: list[Tensor]) -> None:
        for parameter, kept in zip(self._parameters.values(), snapshot, strict=True):
            parameter.tensor.copy_(kept)


@full_float32()
def train(
    block: TunedBlock,
    tune: BlockTune,
    samples: Samples,
    kwargs: dict[str, Any],
    *,
    seed: int,
    where: str,
    seldom_reached: frozenset[str] = frozenset(),
) -> Tuned:
    """Train what `block` has to train. where: the block's name.

    seldom_reached: linears that no window may reach; they keep their initial values then, and are `degraded`.

    A step whose loss or gradient is not finite is not taken and halves the learning rates. After three the block starts
    anew at those rates, after three more the initial parameters stay, and `degraded` says so.
    Raises NumericalError, naming the linear, when no gradient reaches a parameter in the first pass over the windows.
    """
    training = _Training(block, tune, samples, kwargs, seed, where, seldom_reached)
    left, degraded = training.run()
    learned = {
        name: replace(linear.learned(), degraded=degraded or training.untouched(name))
        for name, linear in block.linears.items()
    }
    scales = [(group, scale.detach().clone()) for group, scale in block.scales()]
    return Tuned(learned, scales, f"tune=block({left:.3g})")


def _batches(windows: list[int], size: int) -> list[list[int]]:
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _grad(parameter: Parameter) -> Tensor:
    grad = parameter.tensor.grad
    return torch.zeros_like(parameter.tensor) if grad is None else grad


def _float32(value: Any) -> Any:
    """Floating-point tensors, alone or in a tuple, as float32."""
    if isinstance(value, tuple):
        return tuple(_float32(item) for item in value)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
