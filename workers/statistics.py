"""What the calibration stream says of each group of linears that share an input: collected once, by hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.hessian import accumulate_cross, accumulate_gram
from workers.arch import LinearGroup
from workers.methods.statistics import Statistics


@dataclass
class _Sums:
    gram: Tensor
    cross: Tensor | None
    sample: list[Tensor]
    num_tokens: int = 0


class GroupStatistics:
    """Hessians, and a sample of inputs if asked for, of the groups of one block."""

    def __init__(self, groups: tuple[LinearGroup, ...], *, sample_every: int | None) -> None:
        """sample_every: keep one token in so many; null keeps none."""
        self._groups, self._sample_every = groups, sample_every
        self._sums: dict[str, _Sums] = {}
        self._recorded: dict[str, Tensor] = {}

    def watching(self, block: nn.Module) -> AbstractContextManager[None]:
        """Every batch that runs through the block inside is counted."""
        return self._hooked(block, self._count)

    def recording(self, block: nn.Module) -> AbstractContextManager[None]:
        """The batch that runs inside is the original form of the next one that is watched: cross-Hessians are kept."""
        return self._hooked(block, self._record)

    @contextmanager
    def _hooked(self, block: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Hooks on the first linear of each group, removed on exit; `see` gets [tokens, in] float32."""
        with ExitStack() as stack:
            for group in self._groups:
                linear = block.get_submodule(group.linears[0])

                def hook(_: nn.Module, args: tuple[Tensor, ...], name: str = group.name) -> None:
                    see(name, args[0].reshape(-1, args[0].shape[-1]).float())

                stack.callback(linear.register_forward_pre_hook(hook).remove)
            yield

    def _record(self, name: str, inputs: Tensor) -> None:
        self._recorded[name] = inputs

    def _count(self, name: str, inputs: Tensor) -> None:
        original = self._recorded.pop(name, None)
        if name not in self._sums:
            gram = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
            self._sums[name] = _Sums(gram, None if original is None else torch.zeros_like(gram), [])
        sums = self._sums[name]
        accumulate_gram(sums.gram, inputs)
        if original is not None and sums.cross is not None:
            accumulate_cross(sums.cross, original - inputs, inputs)
        if self._sample_every is not None:
            sums.sample.append(inputs[-sums.num_tokens % self._sample_every :: self._sample_every].clone())
        sums.num_tokens += len(inputs)

    def gram(self, name: str) -> tuple[Tensor, int]:
        """Sum of x x^T over the group's inputs, [in, in], and the number of them."""
        return self._sums[name].gram, self._sums[name].num_tokens

    @property
    def parts(self) -> list[str]:
        """Names of what is collected, each of which says all that decides it beside the inputs."""
        return ["moments"] + ([] if self._sample_every is None else [f"sample-{self._sample_every}"])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that was counted, cross-Hessians left out: part -> name -> the tensor itself, as long as it stays."""
        state: dict[str, dict[str, Tensor]] = {part: {} for part in self.parts}
        moments, *samples = state.values()
        for name, sums in self._sums.items():
            moments |= {f"{name}.gram": sums.gram, f"{name}.num_tokens": torch.tensor([sums.num_tokens])}
            for sample in samples:
                sample[name] = torch.cat(sums.sample)
        return state

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up what `state` returned, in place of watching."""
        moments, *samples = (state[part] for part in self.parts)
        for group in self._groups:
            gram, num_tokens = moments[f"{group.name}.gram"], int(moments[f"{group.name}.num_tokens"])
            self._sums[group.name] = _Sums(gram, None, [sample[group.name] for sample in samples], num_tokens)

    def rescale(self, name: str, scale: Tensor) -> None:
        """The group's inputs have been divided by `scale` [in]: the same statistics of what they are now."""
        if name in self._sums:
            sums, reciprocal = self._sums[name], scale.float().reciprocal()
            for moments in (sums.gram, sums.cross):
                if moments is not None:
                    moments.mul_(reciprocal).mul_(reciprocal[:, None])
            sums.sample = [inputs.mul_(reciprocal) for inputs in sums.sample]

    def take(self, name: str) -> Statistics:
        """The group's statistics, which are not kept here any longer; none where nothing was watched."""
        if name not in self._sums:
            return Statistics()
        sums = self._sums.pop(name)
        sample = torch.cat(sums.sample) if sums.sample else None
        return Statistics(
            hessian=sums.gram.div_(sums.num_tokens),
            cross_hessian=None if sums.cross is None else sums.cross.div_(sums.num_tokens),
            inputs=sample,
            num_tokens=sums.num_tokens,
        )
