"""One block, from the original to the quantized: rotate, scale, train, collect statistics, round."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import BlockTune, LearnedScale, MethodConf, MinmaxClip, NoScale, SearchClip, UniformScheme
from workers.api import LayerReport, QuantizeRequest
from workers.arch import LinearGroup, is_skipped
from workers.coverage import calibrated, cover, is_short
from workers.errors import NumericalError
from workers.methods.errors import MethodError
from workers.methods.grid import GridScheme
from workers.methods.linear import quantize_linear
from workers.methods.registry import Need, is_baseline, needs
from workers.methods.rotate.hadamard import intermediate_basis
from workers.methods.statistics import Statistics
from workers.packing import layout_of, pack
from workers.rotation import Rotation
from workers.scaling import BlockScaling, fold
from workers.seeds import seed_of
from workers.shared_statistics import SharedStatistics
from workers.statistics import GroupStatistics
from workers.stream import BlockStream
from workers.tuning import Samples, Tuned, TunedBlock, train


@dataclass(frozen=True)
class QuantizedBlock:
    """reports: one for each linear. tensors: of the block's shard, by their full names."""

    reports: list[LayerReport]
    tensors: dict[str, Tensor]


@dataclass
class BlockData:
    """The calibration at the entrance of a block: batches [b, L, hidden], and what the block is called with beside it.

    inputs: as the quantized blocks before make them. original: as the original ones do; original_outputs: what this
    block makes of those as it was, filled in by `quantize_block`. Each is empty where the method does not need it.
    shared: where statistics of this block may be taken from and kept for other cells, null where they are its own;
    were_taken: whether they were, filled in too.
    """

    inputs: list[Tensor]
    original: list[Tensor]
    kwargs: dict[str, Any]
    shared: SharedStatistics | None = None
    original_outputs: list[Tensor] = field(default_factory=list)
    were_taken: bool = False

    @property
    def seen(self) -> list[Tensor]:
        """What statistics are taken on: the inputs where they are followed, the original ones otherwise."""
        return self.inputs or self.original


def quantize_block(
    request: QuantizeRequest, stream: BlockStream, rotation: Rotation, block: nn.Module, index: int, data: BlockData
) -> QuantizedBlock:
    """Quantize a block in place, in the rotated basis, which the data are in too."""
    if is_baseline(request.method):
        return QuantizedBlock([], {})
    groups = stream.groups(index, request.method.skip)
    here = _Here(request, stream, block, index, groups, data)
    rotation.turn_block(block, groups, here.prefix)
    scaling = _scaling(here)
    statistics = _observe(here, scaling)
    cover(statistics, request.calibration.experts, here.prefix)
    scaled, starts = _scale(here, scaling, statistics)
    tuned = _tune(here, starts, statistics)
    reports: list[LayerReport] = []
    tensors: dict[str, Tensor] = {}
    for group in groups:
        seen = statistics.take(group.name)
        for name in group.linears:
            before = [rotation.words(group, name), scaled.get(name), tuned.words]
            known = replace(seen, learned=tuned.learned.get(name))
            report, packed = _quantize_one(here, group, name, known, before)
            reports.append(replace(report, shared_statistics=data.were_taken))
            stored = stream.tensors.stored(f"{here.prefix}.{name}.weight").removesuffix(".weight")
            tensors |= {f"{stored}.{part}": tensor for part, tensor in packed.items()}
        reports += [_kept(here, name) for name in group.kept if is_skipped(name, request.method.skip)]
    return QuantizedBlock(reports, tensors | _others(here, reports))


KEPT = "kept by method.skip"
_COLLECTED = {Need.HESSIAN, Need.CROSS_HESSIAN, Need.INPUTS}


@dataclass(frozen=True)
class _Here:
    """The block in work, and what is asked of it."""

    request: QuantizeRequest
    stream: BlockStream
    block: nn.Module
    index: int
    groups: Sequence[LinearGroup]
    data: BlockData

    @property
    def prefix(self) -> str:
        """The block's name in the model."""
        return f"{self.stream.architecture.blocks}.{self.index}"


Scales = list[tuple[LinearGroup, Tensor]]
"""Channel scales [in] of groups, in the order in which they are folded."""


def _scaling(here: _Here) -> BlockScaling | None:
    request, conf = here.request, here.request.method.scale
    if isinstance(conf, NoScale):
        return None
    assert isinstance(request.scheme, GridScheme)
    num_windows, experts = sum(map(len, here.data.seen)), request.calibration.experts
    return BlockScaling(here.block, here.groups, conf, request.scheme, here.stream.head_dim, num_windows, experts)


OUTPUTS = "outputs"  # of the original stream, as a part of what is shared


def _observe(here: _Here, scaling: BlockScaling | None) -> GroupStatistics:
    """What the calibration says of every group, before anything changes; and the outputs of the original stream.

    Taken from the storage where another cell has left all of it there.
    """
    method, data, needed = here.request.method, here.data, needs(here.request.method)
    statistics = GroupStatistics(
        here.block,
        here.groups,
        sample_every=_sample_every(method, data) if Need.INPUTS in needed else None,
        hessian=Need.HESSIAN in needed,
        cross=Need.CROSS_HESSIAN in needed,
        sees_all=here.request.calibration.experts == "all",
    )
    observers: list[BlockScaling | GroupStatistics] = [] if scaling is None else [scaling]
    if needed & _COLLECTED or (statistics.families and needed):  # the tokens of experts are counted in any case
        observers.append(statistics)
    if data.shared is None:
        _collect(here, observers, statistics)
        return statistics
    parts = [part for observer in observers for part in observer.parts] + ([OUTPUTS] if data.original else [])
    found = data.shared.take(here.index, parts)
    if found is None:
        _collect(here, observers, statistics)
        known = {OUTPUTS: {f"{i:05d}": batch for i, batch in enumerate(data.original_outputs)}}
        for observer in observers:
            known |= observer.state()
        data.shared.put(here.index, {part: known[part] for part in parts})
        return statistics
    if scaling is not None:
        with scaling.watching():
            here.stream.feed(here.block, [data.seen[0][:1]], data.kwargs, here.groups)
    for observer in observers:
        observer.restore(found)
    data.original_outputs = [batch for _, batch in sorted(found.get(OUTPUTS, {}).items())]
    data.were_taken = True
    return statistics


def _collect(here: _Here, observers: Sequence[BlockScaling | GroupStatistics], statistics: GroupStatistics) -> None:
    """Let the calibration through the block, past whoever observes it.

    Folds change a group's inputs by what is folded alone, so nothing has to be collected anew after them.
    """
    request, stream, block, data = here.request, here.stream, here.block, here.data

    def keep(_: int, output: Tensor) -> None:
        data.original_outputs.append(output.cpu())

    @contextmanager
    def watching() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(calibrated(block, request.calibration.experts))
            for observer in observers:
                stack.enter_context(observer.watching())
            yield

    if Need.CROSS_HESSIAN in needs(request.method):
        for inputs, original in zip(data.inputs, data.original, strict=True):
            with calibrated(block, request.calibration.experts), statistics.recording():
                stream.run(block, [original], data.kwargs, keep)
            with watching():
                stream.feed(block, [inputs], data.kwargs, here.groups)
    elif data.inputs:
        stream.run(block, data.original, data.kwargs, keep)
        if observers:
            with watching():
                stream.feed(block, data.inputs, data.kwargs, here.groups)
    else:
        with watching():
            stream.run(block, data.original, data.kwargs, keep)


def _sample_every(method: MethodConf, data: BlockData) -> int:
    """Of the calibration's tokens, one in so many for the clip."""
    assert isinstance(method.clip, SearchClip)
    return max(1, sum(batch.shape[0] * batch.shape[1] for batch in data.seen) // method.clip.num_tokens)


def _scale(here: _Here, scaling: BlockScaling | None, statistics: GroupStatistics) -> tuple[dict[str, str], Scales]:
    """Fold the scales of slot scale; linear -> what it got, in words, and what is left to be learned, as it starts."""
    if scaling is None:
        return {}, []
    try:
        found = scaling.search(statistics)
    except MethodError as error:
        raise NumericalError(str(error), layer=here.prefix) from error
    words = {name: report.words(here.request.method.scale) for group, _, report in found for name in group.linears}
    scales = [(group, scale) for group, scale, _ in found]
    if isinstance(here.request.method.scale, LearnedScale):
        return words, scales
    _fold(here, scales, statistics)
    return words, []


def _fold(here: _Here, scales: Scales, statistics: GroupStatistics) -> None:
    try:
        for group, scale in scales:
            fold(here.block, group, scale, here.stream.head_dim)
            statistics.rescale(group, scale)
    except MethodError as error:
        raise NumericalError(str(error), layer=here.prefix) from error


def _tune(here: _Here, starts: Scales, statistics: GroupStatistics) -> Tuned:
    """Train what slot tune names, and fold the scales that were learned."""
    request, stream, block, data, tune = here.request, here.stream, here.block, here.data, here.request.method.tune
    if not isinstance(tune, BlockTune):
        return Tuned()
    assert isinstance(request.scheme, UniformScheme)
    own: list[Tensor] = []
    if tune.aug_loss:
        stream.run(block, data.seen, data.kwargs, lambda _, output: own.append(output.cpu()))
    samples = Samples.of(data.seen, data.original_outputs, own)
    linears = [name for group in here.groups for name in group.linears]
    trained = TunedBlock(block, linears, request.method, request.scheme, starts, stream.head_dim)
    seed, unsure = seed_of(request.seed, here.prefix), _seldom_reached(here.groups, statistics)
    tuned = train(trained, tune, samples, data.kwargs, seed=seed, where=here.prefix, seldom_reached=unsure)
    _fold(here, tuned.scales, statistics)
    return tuned


def _seldom_reached(groups: Sequence[LinearGroup], statistics: GroupStatistics) -> frozenset[str]:
    """The linears of experts that few tokens reach: which ones do as the block is trained is not certain."""
    found = [(group, statistics.sums[group.name]) for group in groups if group.siblings is not None]
    return frozenset(
        name for group, sums in found for name in group.linears if is_short(sums.num_tokens, sums.in_features)
    )


def _quantize_one(
    here: _Here, group: LinearGroup, name: str, statistics: Statistics, before: list[str | None]
) -> tuple[LayerReport, dict[str, Tensor]]:
    """before: what was done to the linear until now, in words."""
    began, request, full_name = time.perf_counter(), here.request, f"{here.prefix}.{name}"
    linear = here.block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach().float()
    method = _method_of(request.method, group, name)
    try:
        result = quantize_linear(weight, statistics, method, request.scheme, seed_of(request.seed, full_name))
    except MethodError as error:
        raise NumericalError(str(error), layer=full_name) from error
    unchanged = torch.equal(result.dense, weight)  # before the write: weight may be the linear's own storage
    linear.weight.data.copy_(result.dense)
    report = LayerReport(
        block=here.index,
        linear=name,
        applied=" ".join(filter(None, (*before, result.outcome.applied))),
        bits=request.scheme.bits,
        group_size=request.scheme.group_size,
        bits_per_weight=result.outcome.bits_per_weight,
        num_weights=weight.numel(),
        num_tokens=statistics.num_tokens,
        damping=result.outcome.damping,
        damping_retries=result.outcome.damping_retries,
        proxy_loss=result.outcome.proxy_loss,
        relative_proxy_loss=result.outcome.relative_proxy_loss,
        unchanged=unchanged,
        degraded=result.outcome.degraded,
        seconds=time.perf_counter() - began,
    )
    return report, pack(result, layout_of(request.method, request.scheme))


def _kept(here: _Here, name: str) -> LayerReport:
    """Of a linear that keeps its bits, which are those of the files."""
    parameter = here.block.get_submodule(name).get_parameter("weight")
    (stored,) = here.stream.tensors.read([f"{here.prefix}.{name}.weight"]).values()
    return LayerReport(
        block=here.index,
        linear=name,
        applied=KEPT,
        bits=8 * stored.element_size(),
        group_size=None,
        bits_per_weight=8 * stored.element_size(),
        num_weights=parameter.numel(),
        num_tokens=0,
        damping=None,
        damping_retries=0,
        proxy_loss=None,
        relative_proxy_loss=None,
        unchanged=True,
        degraded=None,
        seconds=0.0,
    )


def _method_of(method: MethodConf, group: LinearGroup, name: str) -> MethodConf:
    """QuaRot turns inputs that no fold reaches; AWQ does not clip what becomes attention scores, unless asked to."""
    if group.inner == "intermediate":
        method = replace(method, incohere=intermediate_basis(method))
    if isinstance(method.clip, SearchClip) and not method.clip.query_key and name in group.scores:
        return replace(method, clip=MinmaxClip())
    return method


def _others(here: _Here, reports: Sequence[LayerReport]) -> dict[str, Tensor]:
    """The block's tensors that keep their bits: as stored, or where a fold changed them in the compute dtype."""
    prefix, tensors = here.prefix, here.stream.tensors
    quantized = {f"{prefix}.{report.linear}.weight" for report in reports if report.applied != KEPT}
    kept = tensors.read(name for name in tensors.names(f"{prefix}.") if name not in quantized)
    now = {f"{prefix}.{name}": parameter.detach() for name, parameter in here.block.named_parameters()}
    changed = {
        name: now[name].cpu()
        for name, tensor in kept.items()
        if name in now and not torch.equal(now[name].cpu(), tensor.to(now[name].dtype))
    }
    return {tensors.stored(name): tensor for name, tensor in (kept | changed).items()}
