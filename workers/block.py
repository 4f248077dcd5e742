"""One block, from the original to the quantized: rotate it, scale its groups, collect statistics, round its linears."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import MethodConf, MinmaxClip, NoScale, SearchClip
from workers.api import LayerReport, QuantizeRequest
from workers.arch import LinearGroup
from workers.errors import NumericalError
from workers.methods.errors import MethodError
from workers.methods.grid import GridScheme
from workers.methods.linear import quantize_linear
from workers.methods.registry import Need, is_baseline, needs
from workers.methods.rotate.hadamard import intermediate_basis
from workers.methods.statistics import Statistics
from workers.packing import layout_of, pack
from workers.rotation import Rotation
from workers.scaling import BlockScaling
from workers.seeds import seed_of
from workers.statistics import GroupStatistics
from workers.stream import BlockStream


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
    """

    inputs: list[Tensor]
    original: list[Tensor]
    kwargs: dict[str, Any]
    original_outputs: list[Tensor] = field(default_factory=list)

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
    prefix = f"{stream.architecture.blocks}.{index}"
    rotation.turn_block(block, prefix)
    if data.original and Need.CROSS_HESSIAN not in needs(request.method):
        stream.run(block, data.original, data.kwargs, lambda _, output: data.original_outputs.append(output.cpu()))
    scaled = _scale(request, stream, block, prefix, data.seen, data.kwargs)
    statistics = _collect(request, stream, block, data)
    reports: list[LayerReport] = []
    tensors: dict[str, Tensor] = {}
    for group in stream.architecture.groups:
        seen = statistics.take(group.name)
        for name in group.linears:
            before = [rotation.words(group, name), scaled.get(group.name)]
            report, packed = _quantize_one(request, block, index, prefix, group, name, seen, before)
            reports.append(report)
            tensors |= {f"{prefix}.{name}.{part}": tensor for part, tensor in packed.items()}
    return QuantizedBlock(reports, tensors | _others(stream, block, prefix))


def _scale(
    request: QuantizeRequest,
    stream: BlockStream,
    block: nn.Module,
    prefix: str,
    calibration: list[Tensor],
    kwargs: dict[str, Any],
) -> dict[str, str]:
    """Fold the scales of slot scale; group -> what it got, in words."""
    conf = request.method.scale
    if isinstance(conf, NoScale):
        return {}
    assert isinstance(request.scheme, GridScheme)
    head_dim = stream.head_dim
    scaling = BlockScaling(block, stream.architecture.groups, conf, request.scheme, head_dim)
    with scaling.watching():
        stream.run(block, calibration, kwargs)
    try:
        return {scaled.group: scaled.words(conf) for scaled in scaling.fold()}
    except MethodError as error:
        raise NumericalError(str(error), layer=prefix) from error


def _collect(request: QuantizeRequest, stream: BlockStream, block: nn.Module, data: BlockData) -> GroupStatistics:
    """Statistics of every group; with a cross-Hessian, each batch runs in its original form first."""
    needed, clip = needs(request.method), request.method.clip
    sample_every = None
    if Need.INPUTS in needed:
        assert isinstance(clip, SearchClip)
        num_tokens = sum(batch.shape[0] * batch.shape[1] for batch in data.seen)
        sample_every = max(1, num_tokens // clip.num_tokens)
    statistics = GroupStatistics(stream.architecture.groups, sample_every=sample_every)
    if Need.CROSS_HESSIAN in needed:
        for inputs, original in zip(data.inputs, data.original, strict=True):
            with statistics.recording(block):
                stream.run(block, [original], data.kwargs, lambda _, output: data.original_outputs.append(output.cpu()))
            with statistics.watching(block):
                stream.run(block, [inputs], data.kwargs)
    elif needed & {Need.HESSIAN, Need.INPUTS}:
        with statistics.watching(block):
            stream.run(block, data.seen, data.kwargs)
    return statistics


def _quantize_one(
    request: QuantizeRequest,
    block: nn.Module,
    index: int,
    prefix: str,
    group: LinearGroup,
    name: str,
    statistics: Statistics,
    before: list[str | None],
) -> tuple[LayerReport, dict[str, Tensor]]:
    began = time.perf_counter()
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach().float()
    method = _method_of(request.method, group, name)
    try:
        result = quantize_linear(weight, statistics, method, request.scheme, seed_of(request.seed, f"{prefix}.{name}"))
    except MethodError as error:
        raise NumericalError(str(error), layer=f"{prefix}.{name}") from error
    dense = result.dequantize()
    unchanged = torch.equal(dense, weight)  # before the write: weight may be the linear's own storage
    linear.weight.data.copy_(dense)
    report = LayerReport(
        block=index,
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


def _method_of(method: MethodConf, group: LinearGroup, name: str) -> MethodConf:
    """QuaRot turns inputs that no fold reaches; AWQ does not clip what becomes attention scores, unless asked to."""
    if group.inner == "intermediate":
        method = replace(method, incohere=intermediate_basis(method))
    if isinstance(method.clip, SearchClip) and not method.clip.query_key and name in group.scores:
        return replace(method, clip=MinmaxClip())
    return method


def _others(stream: BlockStream, block: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The block's tensors that keep their bits: as stored, or where a fold changed them in the compute dtype."""
    quantized = {f"{prefix}.{name}.weight" for name in stream.architecture.linears}
    kept = stream.reader.read(name for name in stream.reader.names(f"{prefix}.") if name not in quantized)
    now = {f"{prefix}.{name}": parameter.detach() for name, parameter in block.named_parameters()}
    changed = {
        name: now[name].cpu()
        for name, tensor in kept.items()
        if name in now and not torch.equal(now[name].cpu(), tensor.to(now[name].dtype))
    }
    return kept | changed
