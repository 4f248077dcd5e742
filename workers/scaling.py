"""Slot scale over one block: statistics of each group's channels, the search, and the fold into what feeds them.

A group's linears are multiplied by s along their inputs and the op before them is divided by s along its outputs, so
that the block computes what it did. The search compares outputs of the group's `inspect` module with weights rounded to
nearest (Lin et al. 2023); all searches of a block see the block as it was, and only then are the folds made. What reads
the same op's outputs gets the same scale, a router too, so that it picks the experts that it picked.

Where a linear is inspected itself, the mean squared change of its outputs over all calibration tokens is the proxy loss
of its rounding error, and nothing is run. Other modules run on windows chosen evenly from the calibration.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import AwqScale, MinmaxClip, ScaleConf
from workers.arch import LinearGroup, foldable
from workers.coverage import is_short
from workers.methods.clip.minmax import fit_grid
from workers.methods.errors import MethodError
from workers.methods.grid import GridScheme, dequantize, quantize
from workers.methods.loss import proxy_loss
from workers.methods.registry import stage_module
from workers.methods.scale.channels import Channels
from workers.statistics import GroupStatistics
from workers.stream import TOKENS_PER_BATCH
from workers.taps import tap


@dataclass(frozen=True)
class Scaled:
    """What a group got. candidate: which one won; its loss and that of the first, null where none was searched."""

    group: str
    candidate: int
    loss: float | None
    loss_unscaled: float | None

    def words(self, conf: ScaleConf) -> str:
        """For the report of its linears."""
        name = stage_module(conf).rpartition(".")[2]
        return f"scale={name}({self.candidate / conf.grid:g})" if isinstance(conf, AwqScale) else f"scale={name}"


@dataclass
class _Seen:
    """Of one group over the calibration batches: its inputs' channels, and some of what its inspected module took.

    num_windows: that went by. windows: of these the ones to compare on, [n, L, hidden]; kwargs: what came beside.
    """

    sum_abs: Tensor | None = None
    max_abs: Tensor | None = None
    num_tokens: int = 0
    num_windows: int = 0
    windows: list[Tensor] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def channels(self) -> Channels:
        assert self.sum_abs is not None and self.max_abs is not None, "no token reached the group"
        return Channels(self.sum_abs / self.num_tokens, self.max_abs)


class BlockScaling:
    """Usage: run the block over its calibration batches inside `watching`, then `search`, then `fold` what it found."""

    def __init__(
        self,
        block: nn.Module,
        groups: Sequence[LinearGroup],
        conf: ScaleConf,
        scheme: GridScheme,
        head_dim: int,
        num_windows: int,
        experts: str = "blend",
    ) -> None:
        """num_windows: of the whole calibration. experts: what few tokens reached, as in `workers.coverage`."""
        self._block, self._conf, self._scheme, self._head_dim = block, conf, scheme, head_dim
        self._groups, self._experts = foldable(groups), experts
        self._seen = {group.name: _Seen() for group in self._groups}
        count = min(conf.num_windows, num_windows) if isinstance(conf, AwqScale) else 0
        self._compared = [i * num_windows // count for i in range(count)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the inputs of every foldable group and of its inspected module, removed on exit."""
        with ExitStack() as stack:
            for group in self._groups:
                stack.callback(tap(self._block, group, self._see_channels(group.name)).remove)
                if self._compared and not _inspects_itself(group):
                    inspected = self._block.get_submodule(group.inspect)
                    see = self._see_windows(group.name)
                    stack.callback(inspected.register_forward_pre_hook(see, with_kwargs=True).remove)
            yield

    def _see_channels(self, name: str) -> Callable[[Tensor], None]:
        def see(inputs: Tensor) -> None:
            if not inputs.numel():
                return
            seen, magnitude = self._seen[name], inputs.detach().abs().reshape(-1, inputs.shape[-1]).float()
            total, largest = magnitude.sum(0), magnitude.amax(0)
            seen.sum_abs = total if seen.sum_abs is None else seen.sum_abs + total
            seen.max_abs = largest if seen.max_abs is None else torch.maximum(seen.max_abs, largest)
            seen.num_tokens += len(magnitude)

        return see

    def _see_windows(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Any]], None]:
        def see(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            seen, rest = self._seen[name], dict(kwargs)
            hidden = args[0] if args else rest.pop("hidden_states")
            own = [i - seen.num_windows for i in self._compared if 0 <= i - seen.num_windows < len(hidden)]
            seen.windows.append(hidden[own].detach().cpu())
            seen.num_windows += len(hidden)
            seen.kwargs = rest

        return see

    @property
    def parts(self) -> list[str]:
        """Names of what is collected, each of which says all that decides it beside the inputs."""
        return ["channels"] + ([f"windows-{len(self._compared)}"] if self._compared else [])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that was seen but for the kwargs: part -> name -> the tensor itself."""
        state: dict[str, dict[str, Tensor]] = {part: {} for part in self.parts}
        channels, *windows = state.values()
        for name, seen in self._seen.items():
            if seen.sum_abs is not None and seen.max_abs is not None:
                channels |= {f"{name}.sum_abs": seen.sum_abs, f"{name}.max_abs": seen.max_abs}
            channels[f"{name}.num_tokens"] = torch.tensor([seen.num_tokens])
            for part in windows:
                part |= {name: torch.cat(seen.windows)} if seen.windows else {}
        return state

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up what `state` returned. Any one window must have been watched before, for the kwargs."""
        channels, *windows = (state[part] for part in self.parts)
        for name, seen in self._seen.items():
            seen.sum_abs, seen.max_abs = channels.get(f"{name}.sum_abs"), channels.get(f"{name}.max_abs")
            seen.num_tokens = int(channels[f"{name}.num_tokens"])
            seen.windows = [part[name] for part in windows if name in part]

    @torch.no_grad()
    def search(self, statistics: GroupStatistics) -> list[tuple[LinearGroup, Tensor, Scaled]]:
        """The best scale [in] of every group, found on the block as it is. statistics: of the same calibration."""
        if self._experts == "blend":
            self._blend()
        return [self._search(group, statistics) for group in self._groups if self._is_foldable(group)]

    def _is_foldable(self, group: LinearGroup) -> bool:
        """Under grouped-query attention the fold into value heads is a choice; without a token there is no scale."""
        skipped = isinstance(self._conf, AwqScale) and self._conf.gqa == "skip"
        return self._seen[group.name].num_tokens > 0 and not (skipped and _repeats(self._block, group) > 1)

    def _blend(self) -> None:
        """An expert with fewer tokens than inputs: so many more of the mean over all experts' tokens."""
        families: dict[str, list[_Seen]] = {}
        for group in self._groups:
            if group.siblings is not None:
                families.setdefault(group.siblings, []).append(self._seen[group.name])
        for family in families.values():
            sums = [(s.sum_abs, s.max_abs) for s in family if s.sum_abs is not None and s.max_abs is not None]
            shared, largest = sum(one for one, _ in sums), torch.stack([one for _, one in sums]).amax(0)
            assert isinstance(shared, Tensor)
            total, size = sum(seen.num_tokens for seen in family), len(shared)
            for seen in family:
                if is_short(seen.num_tokens, size):
                    borrowed = shared * (size / total)
                    seen.sum_abs = borrowed if seen.sum_abs is None else seen.sum_abs + borrowed
                    seen.max_abs, seen.num_tokens = largest, seen.num_tokens + size

    def _search(self, group: LinearGroup, statistics: GroupStatistics) -> tuple[LinearGroup, Tensor, Scaled]:
        seen = self._seen[group.name]
        linears = [_linear(self._block, name) for name in group.linears]
        repeats = _repeats(self._block, group)
        reduce = self._conf.gqa if isinstance(self._conf, AwqScale) else "max"
        channels = Channels(
            self._shared(seen.channels().mean_abs, repeats, reduce),
            self._shared(seen.channels().max_abs, repeats, "max"),
        )
        weights = [self._shared(linear.weight.abs(), repeats, "max") for linear in linears]
        module = importlib.import_module(stage_module(self._conf))
        candidates: list[Tensor] = module.scales(channels, weights, self._conf)
        if len(candidates) == 1:
            return group, candidates[0], Scaled(group.name, 0, None, None)
        if _inspects_itself(group):
            loss_of = self._loss_by_gram(linears[0], *statistics.gram(group.name))
        else:
            loss_of = self._loss_by_running(group, linears)
        losses = [loss_of(scale) for scale in candidates]
        if not all(map(math.isfinite, losses)):
            raise MethodError(f"{group.inspect}: the loss of a scale is NaN or Inf; set numerics.dtype=float32")
        best = min(range(len(losses)), key=losses.__getitem__)
        return group, candidates[best], Scaled(group.name, best, losses[best], losses[0])

    def _shared(self, values: Tensor, repeats: int, reduce: str) -> Tensor:
        """Columns of query heads that read one value head get one value: [..., in], their mean or max."""
        if repeats == 1:
            return values
        heads = values.unflatten(-1, (-1, repeats, self._head_dim))
        one = heads.amax(-2, keepdim=True) if reduce == "max" else heads.mean(-2, keepdim=True)
        shared: Tensor = one.expand_as(heads).flatten(-3)
        return shared

    def _loss_by_gram(self, linear: nn.Linear, gram: Tensor, num_tokens: int) -> Callable[[Tensor], float]:
        """tr(E X^T X E^T) over tokens and outputs, E the error of rounding to nearest in the scaled channels."""
        weight = linear.weight.data.float()

        def loss_of(scale: Tensor) -> float:
            error = _rounded(weight * scale, self._scheme).div_(scale).sub_(weight)
            return proxy_loss(error, gram) / (num_tokens * len(weight))

        return loss_of

    def _loss_by_running(self, group: LinearGroup, linears: Sequence[nn.Linear]) -> Callable[[Tensor], float]:
        """Mean squared change of the inspected module's outputs on the windows it has seen."""
        seen, inspected = self._seen[group.name], self._block.get_submodule(group.inspect)
        originals = [linear.weight.data for linear in linears]
        device = originals[0].device
        windows = torch.cat(seen.windows)
        batches = windows.split(max(1, TOKENS_PER_BATCH // windows.shape[1]))

        def run(hidden: Tensor) -> Tensor:
            return _first(inspected(hidden.to(device), **seen.kwargs))

        outputs = [run(batch).cpu() for batch in batches]
        count = sum(output.numel() for output in outputs)

        def loss_of(scale: Tensor) -> float:
            total = 0.0
            try:
                for linear, weight in zip(linears, originals, strict=True):
                    linear.weight.data = _rounded(weight.float() * scale, self._scheme).div_(scale).to(weight.dtype)
                for batch, before in zip(batches, outputs, strict=True):
                    change = run(batch).float().sub_(before.to(device))
                    total += float(change.square_().sum(dtype=torch.float64))
            finally:
                for linear, weight in zip(linears, originals, strict=True):
                    linear.weight.data = weight
            return total / count

        return loss_of


@torch.no_grad()
def fold(block: nn.Module, group: LinearGroup, scale: Tensor, head_dim: int) -> None:
    """Linears times `scale` [in], the op before them over it. Raises MethodError where a parameter would vanish."""
    parameters = dict(block.named_parameters())
    for name, changed in folded(parameters, group, scale, head_dim).items():
        old, is_divided = parameters[name].data, name.startswith(f"{group.prev_op}.")
        if not torch.isfinite(changed).all() or (is_divided and ((changed == 0) & (old != 0)).any()):
            raise MethodError(f"{name}: a scale takes it out of range; set numerics.dtype=float32")
        parameters[name].data = changed.to(old.dtype)


def folded(parameters: Mapping[str, Tensor], group: LinearGroup, scale: Tensor, head_dim: int) -> dict[str, Tensor]:
    """The parameters of a block, by name, that a fold changes, as they are after it: float32, differentiable.

    scale: [in]; under grouped-query attention one value for all columns that read one output of the op before.
    """
    assert group.prev_op is not None
    changed = {}
    for part in ("weight", "bias"):
        name = f"{group.prev_op}.{part}"
        if name in parameters:
            old = parameters[name]
            divisor = _of_outputs(scale, len(old), head_dim)
            changed[name] = old.float() / (divisor if old.dim() == 1 else divisor[:, None])
    for linear in group.readers:
        changed[f"{linear}.weight"] = parameters[f"{linear}.weight"].float() * scale
    return changed


def _of_outputs(scale: Tensor, outputs: int, head_dim: int) -> Tensor:
    """What each output of the op before is divided by, [outputs]: some have many readers, and some have none."""
    if outputs < len(scale):
        return scale.reshape(-1, len(scale) // outputs, head_dim)[:, 0].reshape(-1)
    return torch.cat([scale, scale.new_ones(outputs - len(scale))])


def _inspects_itself(group: LinearGroup) -> bool:
    return group.linears == (group.inspect,)


def _repeats(block: nn.Module, group: LinearGroup) -> int:
    """How many of the group's inputs read one output of the op before: more than one under grouped-query attention."""
    assert group.prev_op is not None
    (rows,) = {parameter.shape[0] for parameter in block.get_submodule(group.prev_op).parameters(recurse=False)}
    columns = _linear(block, group.linears[0]).in_features
    assert columns % rows == 0 or columns < rows, f"{group.prev_op} has {rows} outputs, {group.name} {columns} inputs"
    return max(1, columns // rows)


def _linear(block: nn.Module, name: str) -> nn.Linear:
    module = block.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _rounded(weight: Tensor, scheme: GridScheme) -> Tensor:
    params = fit_grid(weight, MinmaxClip(), scheme)
    return dequantize(quantize(weight, params), params)


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
