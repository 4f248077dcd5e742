"""The block loop: from a resolved model to a committed checkpoint.

For each block: run the calibration stream through it to accumulate Hessians, quantize its linears, run the stream again
through the quantized block to get the next block's inputs. Embedding, norms and head keep their bits. Each finished
block and its outputs are on disk before the next begins, so a killed worker's successor resumes with the same codes.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.schema import UniformScheme
from kernels.hessian import accumulate_gram
from workers import checkpoint as ck
from workers import export, partial
from workers.api import Canary, LayerReport, Manifest, QuantizeRequest
from workers.arch import LinearGroup
from workers.calibration import Windows, calibration_windows, canary_tokens, token_hash
from workers.datasets import load_content
from workers.errors import NoOpError, NumericalError
from workers.failures import is_disk_full
from workers.methods.errors import MethodError
from workers.methods.linear import quantize_linear
from workers.methods.registry import Need, is_baseline, needs
from workers.model_files import load_tokenizer, local_directory
from workers.process import peak_memory_gib, reset_peak_memory, return_freed_memory, versions
from workers.stream import BlockStream

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Streams:
    """Hidden states between two blocks: batches [b, L, hidden] on the host.

    calibration is empty for methods that need no data. reference runs through the original blocks, quantized through
    what became of them. The kwargs are what a block is called with beside them.
    """

    calibration: list[torch.Tensor]
    reference: list[torch.Tensor]
    quantized: list[torch.Tensor]
    calibration_kwargs: dict[str, Any]
    canary_kwargs: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that resumption must find again, by name."""
        named = {"calibration": self.calibration, "reference": self.reference, "quantized": self.quantized}
        return {f"{name}.{i}": batch for name, batches in named.items() for i, batch in enumerate(batches)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up what `tensors` returned."""
        for kind in ("calibration", "reference", "quantized"):
            count = sum(name.startswith(f"{kind}.") for name in tensors)
            setattr(self, kind, [tensors[f"{kind}.{i}"] for i in range(count)])


def quantize(request: QuantizeRequest) -> Manifest | None:
    """Make the checkpoint of `request.quantize_key` in the storage and return its manifest.

    Null when another sweep has made it by the time it can be claimed. Raises the errors of workers.errors; what is
    finished by then stays in the partial directory for the next attempt, unless the disk is full.
    """
    storage = Path(request.storage)
    final = ck.checkpoint_directory(storage, request.quantize_key)
    unfinished = ck.partial_directory(storage, request.quantize_key)
    with ck.claim(storage, request.quantize_key):
        found = ck.read_manifest(final)
        if found is not None and ck.damage(final, found) is None:
            return None
        try:
            manifest = _make(request, unfinished)
        except OSError as error:
            if is_disk_full(error):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        ck.commit(unfinished, final, manifest)
    return manifest


def _make(request: QuantizeRequest, unfinished: Path) -> Manifest:
    started = time.perf_counter()
    source = local_directory(request.model)
    device = torch.device(request.numerics.device)
    return_freed_memory()
    reset_peak_memory(device)
    stream = BlockStream(request.model, source, dtype=getattr(torch, request.numerics.dtype), device=device)
    windows = _calibration(request, source, stream.config.get_text_config().vocab_size)
    canary = torch.tensor(canary_tokens(windows))
    reports, streams = _walk(request, stream, unfinished, windows, canary)
    finished = Canary(
        tokens=canary.tolist(),
        reference=stream.log_probabilities(streams.reference, canary).tolist(),
        quantized=stream.log_probabilities(streams.quantized, canary).tolist(),
    )
    if is_baseline(request.method):
        files, num_bytes, weight_format = dict[str, str](), stream.reader.num_bytes(), "source"
    else:
        _refuse_no_op(reports, finished)
        files, num_bytes = _complete(request, stream, source, unfinished)
        weight_format = "packed"
    partial.clean(unfinished)
    return Manifest(
        quantize_key=request.quantize_key,
        source=request.model.fingerprint,
        weight_format=weight_format,
        calibration_hash=token_hash(windows),
        calibration_num_tokens=int(windows.size),
        bits_per_weight=_mean_bits(reports),
        checkpoint_bytes=num_bytes,
        canary=finished,
        layer_reports=reports,
        files=files,
        seconds=time.perf_counter() - started,
        peak_memory_gib=peak_memory_gib(device),
        versions=versions(),
    )


def _calibration(request: QuantizeRequest, source: Path, vocab_size: int) -> Windows:
    content = load_content(request.calibration_text)
    tokenizer = load_tokenizer(request.model, source)
    return calibration_windows(request.calibration, content, tokenizer, request.seed, vocab_size)


def _walk(
    request: QuantizeRequest, stream: BlockStream, unfinished: Path, windows: Windows, canary: torch.Tensor
) -> tuple[list[LayerReport], Streams]:
    """All blocks in order, taking up what an earlier attempt has left."""
    saved, tensors = partial.take_up(unfinished)
    streams = _first_streams(request, stream, windows[:1] if saved else windows, canary)
    if saved:
        log.info("resuming after block %d of %d", len(saved), stream.num_blocks)
        streams.restore(tensors)
    reports = [report for block_reports in saved for report in block_reports]
    for index in range(len(saved), stream.num_blocks):
        began = time.perf_counter()
        with stream.block(index) as block:
            stream.run(block, streams.reference, streams.canary_kwargs, _into(streams.reference))
            block_reports, packed = _quantize_block(request, stream, block, index, streams)
            if index + 1 < stream.num_blocks:  # nothing reads the calibration stream after the last block
                stream.run(block, streams.calibration, streams.calibration_kwargs, _into(streams.calibration))
            stream.run(block, streams.quantized, streams.canary_kwargs, _into(streams.quantized))
        _require_finite(streams, f"{stream.architecture.blocks}.{index}")
        reports += block_reports
        partial.save_block(unfinished, index, packed, block_reports, streams.tensors())
        log.info("block %d of %d: %.2f s", index + 1, stream.num_blocks, time.perf_counter() - began)
    return reports, streams


def _first_streams(request: QuantizeRequest, stream: BlockStream, windows: Windows, canary: torch.Tensor) -> Streams:
    reference, canary_kwargs = stream.first_inputs(canary)
    quantized = [batch.clone() for batch in reference]
    if not needs(request.method):
        return Streams([], reference, quantized, {}, canary_kwargs)
    calibration, kwargs = stream.first_inputs(torch.tensor(windows))
    return Streams(calibration, reference, quantized, kwargs, canary_kwargs)


def _into(batches: list[torch.Tensor]) -> Callable[[int, torch.Tensor], None]:
    """Outputs take the place of the inputs they came from: one buffer, not two."""

    def keep(index: int, output: torch.Tensor) -> None:
        batches[index] = output.cpu()

    return keep


def _quantize_block(
    request: QuantizeRequest, stream: BlockStream, block: nn.Module, index: int, streams: Streams
) -> tuple[list[LayerReport], dict[str, torch.Tensor]]:
    """Quantize a block in place; returns its reports and the tensors of its shard."""
    if is_baseline(request.method):
        return [], {}
    prefix = f"{stream.architecture.blocks}.{index}"
    hessians = _Hessians(stream.architecture.groups)
    if Need.HESSIAN in needs(request.method):
        with hessians.watching(block):
            stream.run(block, streams.calibration, streams.calibration_kwargs)
    reports: list[LayerReport] = []
    packed: dict[str, torch.Tensor] = {}
    for group in stream.architecture.groups:
        statistics = hessians.take(group.name)
        for name in group.linears:
            report, tensors = _quantize_one(request, block, index, prefix, name, statistics)
            reports.append(report)
            packed |= {f"{prefix}.{name}.{part}": tensor for part, tensor in tensors.items()}
    quantized = {f"{prefix}.{name}.weight" for name in stream.architecture.linears}
    kept = [name for name in stream.reader.names(f"{prefix}.") if name not in quantized]
    return reports, packed | stream.reader.read(kept)


def _quantize_one(
    request: QuantizeRequest, block: nn.Module, index: int, prefix: str, name: str, statistics: "Statistics"
) -> tuple[LayerReport, dict[str, torch.Tensor]]:
    assert isinstance(request.scheme, UniformScheme)
    began = time.perf_counter()
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach().float()
    try:
        result = quantize_linear(weight, statistics.hessian, request.method, request.scheme)
    except MethodError as error:
        raise NumericalError(str(error), layer=f"{prefix}.{name}") from error
    dense = result.dequantize()
    unchanged = torch.equal(dense, weight)  # before the write: weight may be the linear's own storage
    linear.weight.data.copy_(dense)
    report = LayerReport(
        block=index,
        linear=name,
        applied=result.outcome.applied,
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
    return report, export.pack(result.codes, result.params, request.scheme)


@dataclasses.dataclass
class Statistics:
    """What calibration says of one group's input: hessian [in, in] float32, mean over tokens of x x^T, or null."""

    hessian: torch.Tensor | None
    num_tokens: int


class _Hessians:
    """Accumulates H once per group of linears that share an input."""

    def __init__(self, groups: tuple[LinearGroup, ...]) -> None:
        self._groups = groups
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}

    def watching(self, block: nn.Module) -> ExitStack:
        """Hooks on the first linear of each group, removed on exit."""
        stack = ExitStack()
        for group in self._groups:
            hook = block.get_submodule(group.linears[0]).register_forward_pre_hook(self._observer(group.name))
            stack.callback(hook.remove)
        return stack

    def _observer(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def observe(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs = args[0].reshape(-1, args[0].shape[-1]).float()
            if name not in self._sums:
                self._sums[name] = torch.zeros(inputs.shape[1], inputs.shape[1], device=inputs.device)
                self._tokens[name] = 0
            accumulate_gram(self._sums[name], inputs)
            self._tokens[name] += len(inputs)

        return observe

    def take(self, name: str) -> Statistics:
        """The group's statistics, which are not kept here any longer; none where nothing was watched."""
        if name not in self._sums:
            return Statistics(None, 0)
        num_tokens = self._tokens.pop(name)
        return Statistics(self._sums.pop(name).div_(num_tokens), num_tokens)


def _require_finite(streams: Streams, where: str) -> None:
    for kind, batches in (("calibration", streams.calibration), ("canary", streams.quantized)):
        if not all(torch.isfinite(batch).all() for batch in batches):
            raise NumericalError(f"NaN or Inf in the {kind} activations after this block", layer=where)


def _refuse_no_op(reports: list[LayerReport], canary: Canary) -> None:
    if all(report.unchanged for report in reports) or canary.quantized == canary.reference:
        raise NoOpError(
            f"all {len(reports)} selected linears are what they were before: is this checkpoint already quantized "
            "to this grid, or does the architecture table select nothing?"
        )


def _complete(
    request: QuantizeRequest, stream: BlockStream, source: Path, unfinished: Path
) -> tuple[dict[str, str], int]:
    """Everything outside the blocks, index, config and tokenizer; returns name -> sha256 and the bytes of all files."""
    assert isinstance(request.scheme, UniformScheme)
    files = partial.shard_files(unfinished, stream.num_blocks)
    blocks = f"{stream.architecture.blocks}."
    outside = stream.reader.read(n for n in stream.reader.files if not n.startswith(blocks))
    ck.save_tensors(unfinished / "outside.safetensors", outside, {"format": "pt"})
    ck.write_index(unfinished, files | dict.fromkeys(outside, "outside.safetensors"))
    export.copy_beside(source, unfinished, export.quantization_config(request.scheme, [stream.architecture.head]))
    kept = sorted(p for p in unfinished.iterdir() if p.name != partial.STREAMS and not p.match("block-*.json"))
    return {p.name: ck.sha256(p) for p in kept}, sum(p.stat().st_size for p in kept)


def _mean_bits(reports: list[LayerReport]) -> float:
    """Bits per weight over all quantized weights; 16 where there are none."""
    total = sum(report.num_weights for report in reports)
    return sum(r.bits_per_weight * r.num_weights for r in reports) / total if total else 16.0
