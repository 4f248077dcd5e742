"""What the scheduler calls. The only broad `except`: every error of a stage becomes a Failure, written to the attempt.

A stage's log lines and everything its libraries print go to the attempt's log.txt.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.api import (
    AttemptResult,
    EvaluateRequest,
    EvaluateResult,
    Failure,
    FailureKind,
    QuantizeRequest,
    QuantizeResult,
    from_json,
    to_json,
)
from workers.errors import CellError
from workers.files import create, replace

log = logging.getLogger(__name__)

EXIT_CODE = 70  # the process cannot be trusted with another cell
FATAL_KINDS = (FailureKind.OUT_OF_MEMORY, FailureKind.CUDA)
GPU_MEMORY_WORDS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
NETWORK_LIBRARIES = ("httpx", "httpx2", "huggingface_hub", "requests", "urllib3")


def quantize_stage(request: QuantizeRequest, *, capture_output: bool = True) -> Failure | None:
    """Make the checkpoint of a cell.

    Writes quantize.json, or result.json with the failure, which is returned; nothing when the checkpoint was there.
    """
    directory = Path(request.attempt_directory)
    with _attempt_log(directory, capture_output):
        try:
            started = time.perf_counter()
            from workers.pipeline import quantize

            start_seconds = time.perf_counter() - started
            manifest = quantize(request)
            if manifest is None:
                return None
            result = QuantizeResult(
                checkpoint=request.quantize_key,
                reused=False,
                seconds=manifest.seconds,
                peak_memory_gib=manifest.peak_memory_gib,
                worker_start_seconds=start_seconds,
            )
            replace(directory / "quantize.json", to_json(result))
            return None
        except Exception as error:
            return _fail(directory, _empty_result(request), "quantize", error, capture_output)


class EngineHost:
    """A process that keeps an engine warm and scores one cell after another."""

    def __init__(self, engine: str, tensor_parallel_size: int) -> None:
        """engine: vllm | transformers. Nothing heavy happens before the first cell."""
        self._engine = engine
        self._tensor_parallel_size = tensor_parallel_size
        self._evaluator: Any = None

    def evaluate(self, request: EvaluateRequest, *, capture_output: bool = True) -> Failure | None:
        """Score a cell. Writes result.json either way; the failure, if any, is returned too."""
        directory = Path(request.attempt_directory)
        with _attempt_log(directory, capture_output):
            try:
                result = self._score(request)
                create(directory / "result.json", to_json(_succeeded(request, result)))
                return None
            except Exception as error:
                return _fail(directory, _empty_result(request), "evaluate", error, capture_output)

    def _score(self, request: EvaluateRequest) -> EvaluateResult:
        from workers.evaluate import evaluate, open_evaluator

        if self._evaluator is not None:
            return evaluate(self._evaluator, request)
        started = time.perf_counter()
        self._evaluator = open_evaluator(self._engine, self._tensor_parallel_size)
        seconds = {"import": time.perf_counter() - started}
        result = evaluate(self._evaluator, request)
        return dataclasses.replace(result, seconds=seconds | result.seconds)

    def close(self) -> None:
        """Give the engine's memory back."""
        if self._evaluator is not None:
            self._evaluator.close()


def classify(stage: str, error: BaseException) -> Failure:
    """Which row of the failure table an error belongs to."""
    text = str(error)
    return Failure(
        stage=stage,
        kind=_kind(error, text),
        message=text or type(error).__name__,
        layer=getattr(error, "layer", None),
        traceback="".join(traceback.format_exception(error)),
    )


def _kind(error: BaseException, text: str) -> FailureKind:
    name = type(error).__name__
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, CellError):
        return error.kind
    if name == "OutOfMemoryError" or any(words in text for words in GPU_MEMORY_WORDS):
        return FailureKind.OUT_OF_MEMORY
    if name == "AcceleratorError" or "CUDA error" in text:
        return FailureKind.CUDA
    if isinstance(error, MemoryError) or code == errno.ENOMEM or "can't allocate memory" in text:
        return FailureKind.WORKER_LOST
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return FailureKind.DISK_FULL
    libraries = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if isinstance(error, ConnectionError | TimeoutError) or libraries & set(NETWORK_LIBRARIES):
        return FailureKind.TRANSIENT
    return FailureKind.INTERNAL


def _fail(directory: Path, result: AttemptResult, stage: str, error: Exception, capture_output: bool) -> Failure:
    if not capture_output:
        raise error
    failure = classify(stage, error)
    log.error("%s: %s\n%s", failure.kind, failure.message, failure.traceback)
    quantize = _quantize_result(directory)
    create(
        directory / "result.json",
        to_json(AttemptResult(result.evaluate_key, result.quantize_key, "FAILED", failure=failure, quantize=quantize)),
    )
    if failure.kind in FATAL_KINDS:
        os._exit(EXIT_CODE)
    return failure


def _empty_result(request: QuantizeRequest | EvaluateRequest) -> AttemptResult:
    return AttemptResult(request.evaluate_key, request.quantize_key, "FAILED")


def _succeeded(request: EvaluateRequest, result: EvaluateResult) -> AttemptResult:
    return AttemptResult(
        evaluate_key=request.evaluate_key,
        quantize_key=request.quantize_key,
        status="SUCCEEDED",
        quantize=_quantize_result(Path(request.attempt_directory)),
        evaluate=result,
    )


def _quantize_result(directory: Path) -> QuantizeResult | None:
    """What the quantize stage of this attempt left; null when it found the checkpoint made."""
    path = directory / "quantize.json"
    return from_json(QuantizeResult, path.read_text(encoding="utf-8")) if path.exists() else None


@contextlib.contextmanager
def _attempt_log(directory: Path, capture_output: bool) -> Iterator[None]:
    """Log records, and with capture_output the process's whole output, into the attempt's log.txt."""
    handler = logging.FileHandler(directory / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("workers")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with _redirected(directory / "log.txt") if capture_output else contextlib.nullcontext():
            yield
    finally:
        root.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _redirected(path: Path) -> Iterator[None]:
    """File descriptors 1 and 2 into a file, so that prints of C++ libraries land there too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in (*saved, target):
            os.close(descriptor)
