"""Slot scale over one block: statistics of each group's channels, the search, and the fold into what feeds them.

A group's linears are multiplied by s along their inputs and the op before them is divided by s along its outputs, so
that the block computes what it did. The search compares outputs of the group's `inspect` module with weights rounded to
nearest (Lin et al. 2023); all searches of a block see the block as it was, and only then are the folds made.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import AwqScale, MinmaxClip, ScaleConf
from workers.arch import LinearGroup
from workers.methods.clip.minmax import fit_grid
from workers.methods.errors import MethodError
from workers.methods.grid import GridScheme, dequantize, quantize
from workers.methods.registry import stage_module
from workers.methods.scale.channels import Channels


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
    """Of one group over the calibration batches: its inputs' channels, and what its inspected module took and gave."""

    sum_abs: Tensor | None = None
    max_abs: Tensor | None = None
    num_tokens: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)

    def channels(self) -> Channels:
        assert self.sum_abs is not None and self.max_abs is not None, "the block did not run"
        return Channels(self.sum_abs / self.num_tokens, self.max_abs)


class BlockScaling:
    """Usage: run the block over its calibration batches inside `watching`, then `fold`."""

    def __init__(
        self, block: nn.Module, groups: Sequence[LinearGroup], conf: ScaleConf, scheme: GridScheme, head_dim: int
    ) -> None:
        self._block, self._conf, self._scheme, self._head_dim = block, conf, scheme, head_dim
        self._groups = [group for group in groups if group.prev_op is not None]
        self._seen = {group.name: _Seen() for group in self._groups}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every foldable group and its inspected module, removed on exit."""
        with ExitStack() as stack:
            for group in self._groups:
                first = self._block.get_submodule(group.linears[0])
                inspected = self._block.get_submodule(group.inspect)
                for hook in (
                    first.register_forward_pre_hook(self._see_channels(group.name)),
                    inspected.register_forward_hook(self._see_module(group.name), with_kwargs=True),
                ):
                    stack.callback(hook.remove)
            yield

    def _see_channels(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen, magnitude = self._seen[name], args[0].detach().abs().reshape(-1, args[0].shape[-1]).float()
            total, largest = magnitude.sum(0), magnitude.amax(0)
            seen.sum_abs = total if seen.sum_abs is None else seen.sum_abs + total
            seen.max_abs = largest if seen.max_abs is None else torch.maximum(seen.max_abs, largest)
            seen.num_tokens += len(magnitude)

        return see

    def _see_module(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen, rest = self._seen[name], dict(kwargs)
            hidden = args[0] if args else rest.pop("hidden_states")
            seen.inputs.append(hidden.detach().cpu())
            seen.kwargs = rest
            seen.outputs.append(_first(output).detach().cpu())

        return see

    @torch.no_grad()
    def fold(self) -> list[Scaled]:
        """Search every group on the block as it is, then fold the scales that were found."""
        found = [self._search(group) for group in self._groups if self._is_foldable(group)]
        for group, scale, _ in found:
            fold(self._block, group, scale, self._head_dim)
        return [report for _, _, report in found]

    def _is_foldable(self, group: LinearGroup) -> bool:
        """Under grouped-query attention the fold into the value heads is a choice."""
        skipped = isinstance(self._conf, AwqScale) and self._conf.gqa == "skip"
        return not (skipped and _repeats(self._block, group) > 1)

    def _search(self, group: LinearGroup) -> tuple[LinearGroup, Tensor, Scaled]:
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
        losses = [self._loss(group, linears, scale) for scale in candidates]
        if not all(torch.isfinite(torch.tensor(losses))):
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

    def _loss(self, group: LinearGroup, linears: Sequence[nn.Linear], scale: Tensor) -> float:
        """Mean squared change of the inspected module's output, weights rounded to nearest in the scaled channels."""
        seen, inspected = self._seen[group.name], self._block.get_submodule(group.inspect)
        originals = [linear.weight.data for linear in linears]
        total, count = 0.0, 0
        try:
            for linear, weight in zip(linears, originals, strict=True):
                linear.weight.data = _rounded(weight.float() * scale, self._scheme).div_(scale).to(weight.dtype)
            for hidden, before in zip(seen.inputs, seen.outputs, strict=True):
                device = originals[0].device
                after = _first(inspected(hidden.to(device), **seen.kwargs))
                total += float((after.float() - before.to(device).float()).square().sum(dtype=torch.float64))
                count += after.numel()
        finally:
            for linear, weight in zip(linears, originals, strict=True):
                linear.weight.data = weight
        return total / count


@torch.no_grad()
def fold(block: nn.Module, group: LinearGroup, scale: Tensor, head_dim: int) -> None:
    """Linears times `scale` [in], the op before them over it. Raises MethodError where a parameter would vanish."""
    assert group.prev_op is not None
    before = block.get_submodule(group.prev_op)
    repeats = _repeats(block, group)
    divisor = scale.reshape(-1, repeats, head_dim)[:, 0].reshape(-1) if repeats > 1 else scale
    for name, parameter in before.named_parameters(recurse=False):
        divided = parameter.data.float() / (divisor if parameter.dim() == 1 else divisor[:, None])
        if not torch.isfinite(divided).all() or ((divided == 0) & (parameter.data != 0)).any():
            raise MethodError(f"{group.prev_op}.{name}: a scale takes it out of range; set numerics.dtype=float32")
        parameter.data = divided.to(parameter.dtype)
    for linear in group.linears:
        weight = _linear(block, linear).weight
        weight.data = (weight.data.float() * scale).to(weight.dtype)


def _repeats(block: nn.Module, group: LinearGroup) -> int:
    """How many of the group's inputs read one output of the op before: more than one under grouped-query attention."""
    assert group.prev_op is not None
    (rows,) = {parameter.shape[0] for parameter in block.get_submodule(group.prev_op).parameters(recurse=False)}
    columns = _linear(block, group.linears[0]).in_features
    assert columns % rows == 0, f"{group.prev_op} has {rows} outputs, {group.linears[0]} {columns} inputs"
    return columns // rows


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
