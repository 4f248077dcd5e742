"""What the calibration stream says of each group of linears that share an input: collected once, by hooks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.hessian import accumulate_gram
from workers.arch import LinearGroup
from workers.methods.statistics import Statistics


@dataclass
class _Sums:
    gram: Tensor
    sample: list[Tensor]
    num_tokens: int = 0


class GroupStatistics:
    """Hessians, and a sample of inputs if asked for, of the groups of one block."""

    def __init__(self, groups: tuple[LinearGroup, ...], *, sample_every: int | None) -> None:
        """sample_every: keep one token in so many; null keeps none."""
        self._groups, self._sample_every = groups, sample_every
        self._sums: dict[str, _Sums] = {}

    @contextmanager
    def watching(self, block: nn.Module) -> Iterator[None]:
        """Hooks on the first linear of each group, removed on exit."""
        with ExitStack() as stack:
            for group in self._groups:
                hook = block.get_submodule(group.linears[0]).register_forward_pre_hook(self._observer(group.name))
                stack.callback(hook.remove)
            yield

    def _observer(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0].reshape(-1, args[0].shape[-1]).float()
            if name not in self._sums:
                size = inputs.shape[1]
                self._sums[name] = _Sums(torch.zeros(size, size, device=inputs.device), [])
            sums = self._sums[name]
            accumulate_gram(sums.gram, inputs)
            if self._sample_every is not None:
                sums.sample.append(inputs[-sums.num_tokens % self._sample_every :: self._sample_every].clone())
            sums.num_tokens += len(inputs)

        return observe

    def take(self, name: str) -> Statistics:
        """The group's statistics, which are not kept here any longer; none where nothing was watched."""
        if name not in self._sums:
            return Statistics()
        sums = self._sums.pop(name)
        sample = torch.cat(sums.sample) if sums.sample else None
        return Statistics(hessian=sums.gram.div_(sums.num_tokens), inputs=sample, num_tokens=sums.num_tokens)
