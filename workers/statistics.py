"""What the calibration stream says of each group of linears that share an input: collected once, by hooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kernels.hessian import accumulate_cross, accumulate_gram
from workers.arch import LinearGroup
from workers.methods.statistics import Statistics
from workers.taps import tap


@dataclass
class GroupSums:
    """Of one group: sums over its tokens, and a sample of its inputs.

    gram: sum of x x^T, [in, in], null where no method asks for it. cross: of (x_fp - x) x^T, likewise. num_tokens: that
    reached the group. num_borrowed: how many more the gram counts, which did not. degraded: why it does, or null.
    """

    in_features: int
    gram: Tensor | None = None
    cross: Tensor | None = None
    sample: list[Tensor] = field(default_factory=list)
    num_tokens: int = 0
    num_borrowed: int = 0
    degraded: str | None = None


class GroupStatistics:
    """Hessians, and a sample of inputs if asked for, of the groups of one block; the number of tokens in any case."""

    def __init__(
        self,
        block: nn.Module,
        groups: Sequence[LinearGroup],
        *,
        sample_every: int | None,
        hessian: bool = True,
        cross: bool = False,
        sees_all: bool = False,
    ) -> None:
        """sample_every: keep one token in so many (of an expert more, as it sees fewer); null keeps none.

        sees_all: every expert sees every token, so of each is kept what is kept of others.
        """
        self._block, self._groups = block, [group for group in groups if group.linears]
        self._sample_every, self._hessian, self._cross = sample_every, hessian, cross
        families = [group.siblings for group in self._groups]
        experts = [] if sees_all else [group for group in self._groups if group.siblings]
        self._family_sizes = {group.name: families.count(group.siblings) for group in experts}
        self.sums: dict[str, GroupSums] = {}
        self._recorded: dict[str, Tensor] = {}

    @property
    def families(self) -> dict[str, list[str]]:
        """The names of the groups that are one in the architecture's table, one for each expert, by that one's name."""
        found: dict[str, list[str]] = {}
        for group in self._groups:
            if group.siblings is not None:
                found.setdefault(group.siblings, []).append(group.name)
        return found

    def watching(self) -> AbstractContextManager[None]:
        """Every batch that runs through the block inside is counted."""
        for group in self._groups:
            if group.name not in self.sums:
                self.sums[group.name] = self._zeros(group)
        return self._hooked(self._count)

    def recording(self) -> AbstractContextManager[None]:
        """The batch that runs inside is the original form of the next one that is watched: cross-Hessians are kept."""
        return self._hooked(self._record)

    def _zeros(self, group: LinearGroup) -> GroupSums:
        weight = self._block.get_submodule(group.linears[0]).weight
        assert isinstance(weight, Tensor)
        size = weight.shape[1]

        def zeros(wanted: bool) -> Tensor | None:
            return torch.zeros(size, size, device=weight.device) if wanted else None

        return GroupSums(size, zeros(self._hessian), zeros(self._cross))

    @contextmanager
    def _hooked(self, see: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Hooks on the inputs of each group, removed on exit; `see` gets [tokens, in] float32."""
        with ExitStack() as stack:
            for group in self._groups:

                def hook(inputs: Tensor, name: str = group.name) -> None:
                    see(name, inputs.reshape(-1, inputs.shape[-1]).float())

                stack.callback(tap(self._block, group, hook).remove)
            yield

    def _record(self, name: str, inputs: Tensor) -> None:
        self._recorded[name] = inputs

    def _count(self, name: str, inputs: Tensor) -> None:
        sums = self.sums[name]
        if sums.gram is not None:
            accumulate_gram(sums.gram, inputs)
        if sums.cross is not None:
            accumulate_cross(sums.cross, self._recorded.pop(name) - inputs, inputs)
        if self._sample_every is not None:
            every = max(1, self._sample_every // self._family_sizes.get(name, 1))
            sums.sample.append(inputs[-sums.num_tokens % every :: every].clone())
        sums.num_tokens += len(inputs)

    def gram(self, name: str) -> tuple[Tensor, int]:
        """Sum of x x^T over the group's inputs, [in, in], and the number of them."""
        sums = self.sums[name]
        assert sums.gram is not None, f"no Hessian of {name} was asked for"
        return sums.gram, sums.num_tokens + sums.num_borrowed

    @property
    def parts(self) -> list[str]:
        """Names of what is collected, each of which says all that decides it beside the inputs."""
        samples = [] if self._sample_every is None else [f"sample-{self._sample_every}"]
        return ["moments" if self._hessian else "tokens", *samples]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that was counted, cross-Hessians left out: part -> name -> the tensor itself, as long as it stays."""
        state: dict[str, dict[str, Tensor]] = {part: {} for part in self.parts}
        moments, *samples = state.values()
        for name, sums in self.sums.items():
            moments[f"{name}.sizes"] = torch.tensor([sums.num_tokens, sums.in_features])
            if sums.gram is not None:
                moments[f"{name}.gram"] = sums.gram
            for sample in samples:
                sample |= {name: torch.cat(sums.sample)} if sums.sample else {}
        return state

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up what `state` returned, in place of watching."""
        moments, *samples = (state[part] for part in self.parts)
        for group in self._groups:
            num_tokens, in_features = moments[f"{group.name}.sizes"].tolist()
            sample = [one[group.name] for one in samples if group.name in one]
            gram = moments.get(f"{group.name}.gram")
            self.sums[group.name] = GroupSums(in_features, gram, sample=sample, num_tokens=num_tokens)

    def rescale(self, scaled: LinearGroup, scale: Tensor) -> None:
        """The inputs of these linears have been divided by `scale` [in]: the same statistics of what they are now."""
        reciprocal = scale.float().reciprocal()
        for group in self._groups:
            if group.name not in self.sums or not set(group.linears) <= set(scaled.linears):
                continue
            sums = self.sums[group.name]
            for moments in (sums.gram, sums.cross):
                if moments is not None:
                    moments.mul_(reciprocal).mul_(reciprocal[:, None])
            sums.sample = [inputs.mul_(reciprocal) for inputs in sums.sample]

    def _inputs(self, sums: GroupSums) -> Tensor | None:
        if self._sample_every is None:
            return None
        return torch.cat(sums.sample) if sums.sample else torch.empty(0, sums.in_features)

    def take(self, name: str) -> Statistics:
        """The group's statistics, which are not kept here any longer; none where nothing was watched."""
        if name not in self.sums:
            return Statistics()
        sums = self.sums.pop(name)
        count = max(1, sums.num_tokens + sums.num_borrowed)
        return Statistics(
            hessian=None if sums.gram is None else sums.gram.div_(count),
            cross_hessian=None if sums.cross is None else sums.cross.div_(count),
            inputs=self._inputs(sums),
            num_tokens=sums.num_tokens,
            degraded=sums.degraded,
        )
