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
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers import checkpoint as ck
from workers import export, partial
from workers.api import Canary, LayerReport, Manifest, QuantizeRequest
from workers.block import BlockData, QuantizedBlock, quantize_block
from workers.calibration import Calibration, calibration_windows, canary_tokens
from workers.datasets import IMAGES, load_content, verified
from workers.errors import NoOpError, NumericalError
from workers.failures import is_disk_full
from workers.image_calibration import image_windows
from workers.layout import checkpoint_directory, partial_directory
from workers.methods.registry import follows_original, follows_quantized, is_baseline, needs, shares_statistics
from workers.model_files import load_tokenizer, local_directory
from workers.models.selective_scan import linear_scan
from workers.packing import layout_of
from workers.process import peak_memory_gib, reset_peak_memory, return_freed_memory, versions
from workers.rotation import Rotation
from workers.shared_statistics import SharedStatistics
from workers.stream import BlockStream
from workers.transformers_images import load_processor

log = logging.getLogger(__name__)

STREAMS = ("original_calibration", "calibration", "reference", "quantized")  # of Streams, as they are saved


@dataclasses.dataclass
class Streams:
    """Hidden states between two blocks: batches [b, L, hidden] on the host, all but the reference rotated.

    Of the calibration windows, through the original blocks and through what became of them, each empty for methods that
    do not need it; and of the canary, both ways. The kwargs are what a block is called with beside them.
    """

    original_calibration: list[torch.Tensor]
    calibration: list[torch.Tensor]
    reference: list[torch.Tensor]
    quantized: list[torch.Tensor]
    calibration_kwargs: dict[str, Any]
    canary_kwargs: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that resumption must find again, by name."""
        return {f"{kind}.{i}": batch for kind in STREAMS for i, batch in enumerate(getattr(self, kind))}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up what `tensors` returned."""
        for kind in STREAMS:
            count = sum(name.startswith(f"{kind}.") for name in tensors)
            setattr(self, kind, [tensors[f"{kind}.{i}"] for i in range(count)])


def quantize(request: QuantizeRequest) -> Manifest | None:
    """Make the checkpoint of `request.quantize_key` in the storage and return its manifest.

    Null when another sweep has made it by the time it can be claimed. Raises the errors of workers.errors; what is
    finished by then stays in the partial directory for the next attempt, unless the disk is full.
    """
    storage = Path(request.storage)
    final = checkpoint_directory(storage, request.quantize_key)
    unfinished = partial_directory(storage, request.quantize_key)
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


@linear_scan()  # the library's takes three times as long on a CPU, and trains in quadratic time
def _make(request: QuantizeRequest, unfinished: Path) -> Manifest:
    started = time.perf_counter()
    source = local_directory(request.model)
    device = torch.device(request.numerics.device)
    return_freed_memory()
    reset_peak_memory(device)
    stream = BlockStream(request.model, source, dtype=getattr(torch, request.numerics.dtype), device=device)
    calibration = _calibration(request, source, stream.config.get_text_config().vocab_size)
    canary = torch.tensor(canary_tokens(calibration))
    rotation = Rotation.of(request, stream)
    reports, streams = _walk(request, stream, rotation, unfinished, calibration, canary)
    finished = Canary(
        tokens=canary.tolist(),
        reference=stream.log_probabilities(streams.reference, canary).tolist(),
        quantized=stream.log_probabilities(streams.quantized, canary, rotation.turn_head).tolist(),
    )
    if is_baseline(request.method):
        files, num_bytes, weight_format = dict[str, str](), stream.reader.num_bytes(), "source"
    else:
        _refuse_no_op(reports, finished)
        files, num_bytes = _complete(request, stream, rotation, source, unfinished)
        weight_format = "packed"
    partial.clean(unfinished)
    return Manifest(
        quantize_key=request.quantize_key,
        source=request.model.fingerprint,
        weight_format=weight_format,
        calibration_hash=calibration.hash,
        calibration_num_tokens=int(calibration.windows.size),
        bits_per_weight=_mean_bits(reports),
        checkpoint_bytes=num_bytes,
        canary=finished,
        layer_reports=reports,
        files=files,
        seconds=time.perf_counter() - started,
        peak_memory_gib=peak_memory_gib(device),
        versions=versions(),
    )


def _calibration(request: QuantizeRequest, source: Path, vocab_size: int) -> Calibration:
    conf = request.calibration
    if request.calibration_text.source == IMAGES:
        folder = verified(request.calibration_text)
        return Calibration(*image_windows(conf, folder, load_processor(source), request.seed, vocab_size))
    content = load_content(request.calibration_text)
    tokenizer = load_tokenizer(request.model, source)
    return Calibration(calibration_windows(conf, content, tokenizer, request.seed, vocab_size))


def _walk(
    request: QuantizeRequest,
    stream: BlockStream,
    rotation: Rotation,
    unfinished: Path,
    calibration: Calibration,
    canary: torch.Tensor,
) -> tuple[list[LayerReport], Streams]:
    """All blocks in order, taking up what an earlier attempt has left."""
    shared = SharedStatistics.of(request, calibration.hash)
    saved, tensors = partial.take_up(unfinished)
    streams = _first_streams(request, stream, rotation, calibration.first(1) if saved else calibration, canary)
    if saved:
        log.info("resuming after block %d of %d", len(saved), stream.num_blocks)
        streams.restore(tensors)
    reports = [report for block_reports in saved for report in block_reports]
    for index in range(len(saved), stream.num_blocks):
        began = time.perf_counter()
        with stream.block(index) as block:
            stream.run(block, streams.reference, streams.canary_kwargs, _into(streams.reference))
            mine = shared if shares_statistics(request.method, request.numerics, index) else None
            done = _quantize_and_propagate(request, stream, rotation, block, index, streams, mine)
            stream.run(block, streams.quantized, streams.canary_kwargs, _into(streams.quantized))
        _require_finite(streams, f"{stream.architecture.blocks}.{index}")
        reports += done.reports
        partial.save_block(unfinished, index, done.tensors, done.reports, streams.tensors())
        log.info("block %d of %d: %.2f s", index + 1, stream.num_blocks, time.perf_counter() - began)
    return reports, streams


def _quantize_and_propagate(
    request: QuantizeRequest,
    stream: BlockStream,
    rotation: Rotation,
    block: nn.Module,
    index: int,
    streams: Streams,
    shared: SharedStatistics | None,
) -> QuantizedBlock:
    """Quantize on the calibration streams, then let each through the block: the original one before it changes."""
    data = BlockData(streams.calibration, streams.original_calibration, streams.calibration_kwargs, shared)
    done = quantize_block(request, stream, rotation, block, index, data)
    streams.original_calibration = data.original_outputs
    if index + 1 < stream.num_blocks:  # nothing reads the calibration streams after the last block
        stream.run(block, streams.calibration, streams.calibration_kwargs, _into(streams.calibration))
    return done


def _first_streams(
    request: QuantizeRequest, stream: BlockStream, rotation: Rotation, given: Calibration, canary: torch.Tensor
) -> Streams:
    reference, canary_kwargs = stream.first_inputs(canary)
    quantized = [rotation.states(batch.clone()) for batch in reference]
    method = request.method
    if not needs(method):
        return Streams([], [], reference, quantized, {}, canary_kwargs)
    calibration, kwargs = stream.first_inputs(torch.tensor(given.windows), given.shown)
    for index, batch in enumerate(calibration):
        calibration[index] = rotation.states(batch)
    original = [batch.clone() for batch in calibration] if follows_original(method) else []
    return Streams(
        original, calibration if follows_quantized(method) else [], reference, quantized, kwargs, canary_kwargs
    )


def _into(batches: list[torch.Tensor]) -> Callable[[int, torch.Tensor], None]:
    """Outputs take the place of the inputs they came from: one buffer, not two."""

    def keep(index: int, output: torch.Tensor) -> None:
        batches[index] = output.cpu()

    return keep


def _require_finite(streams: Streams, where: str) -> None:
    calibration = streams.original_calibration + streams.calibration
    for kind, batches in (("calibration", calibration), ("canary", streams.quantized)):
        if not all(torch.isfinite(batch).all() for batch in batches):
            raise NumericalError(f"NaN or Inf in the {kind} activations after this block", layer=where)


def _refuse_no_op(reports: list[LayerReport], canary: Canary) -> None:
    if all(report.unchanged for report in reports) or canary.quantized == canary.reference:
        raise NoOpError(
            f"all {len(reports)} selected linears are what they were before: is this checkpoint already quantized "
            "to this grid, or does the architecture table select nothing?"
        )


def _complete(
    request: QuantizeRequest, stream: BlockStream, rotation: Rotation, source: Path, unfinished: Path
) -> tuple[dict[str, str], int]:
    """Everything outside the blocks, index, config and tokenizer; returns name -> sha256 and the bytes of all files."""
    layout = layout_of(request.method, request.scheme)
    files = partial.shard_files(unfinished, stream.num_blocks)
    blocks = set(stream.tensors.names(f"{stream.architecture.blocks}."))
    outside = stream.tensors.read(n for n in stream.tensors.names("") if n not in blocks) | rotation.outside(stream)
    outside = {stream.tensors.stored(name): tensor for name, tensor in outside.items()}
    ck.save_tensors(unfinished / "outside.safetensors", outside, {"format": "pt"})
    ck.write_index(unfinished, files | dict.fromkeys(outside, "outside.safetensors"))
    quantization = export.quantization_config(layout, _left_alone(stream, request.method.skip))
    export.copy_beside(source, unfinished, quantization, rotation.config)
    kept = sorted(p for p in unfinished.iterdir() if p.name != partial.STREAMS and not p.match("block-*.json"))
    return {p.name: ck.sha256(p) for p in kept}, sum(p.stat().st_size for p in kept)


def _left_alone(stream: BlockStream, skip: list[str]) -> list[str]:
    """The modules with a matrix that is not quantized: head, routers, image tower.

    By their names in Transformers and in the files, where these are others: tools differ in which they look for.
    """
    head, embedding, blocks = stream.architecture.head, stream.architecture.embedding, stream.architecture.blocks
    quantized = {
        f"{blocks}.{index}.{name}"
        for index in range(stream.num_blocks)
        for group in stream.groups(index, skip)
        for name in group.linears
    }
    matrices = {name for name, p in stream.model.named_parameters() if p.dim() == 2 and name.endswith(".weight")}
    modules = ({name.removesuffix(".weight") for name in matrices} - quantized - {embedding}) | {head}
    return sorted(modules | {stream.tensors.stored(f"{name}.weight").removesuffix(".weight") for name in modules})


def _mean_bits(reports: list[LayerReport]) -> float:
    """Bits per weight over all quantized weights; 16 where there are none."""
    total = sum(report.num_weights for report in reports)
    return sum(r.bits_per_weight * r.num_weights for r in reports) / total if total else 16.0
