"""What the scheduler calls. The only broad `except`: every error of a stage becomes a Failure, written to the attempt.

A stage's log lines and everything its libraries print go to the attempt's log.txt. Nothing that is written holds a
secret of this node.
"""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable
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
from workers.attempt_log import attempt_log
from workers.failures import classify
from workers.files import create, replace
from workers.redaction import Redactor
from workers.secrets import known_secrets, load_secrets

log = logging.getLogger(__name__)

EXIT_CODE = 70  # the process cannot be trusted with another cell
FATAL_KINDS = (FailureKind.OUT_OF_MEMORY, FailureKind.CUDA)


def quantize_stage(request: QuantizeRequest, *, capture_output: bool = True) -> Failure | None:
    """Make the checkpoint of a cell.

    Writes quantize.json, or result.json with the failure, which is returned; nothing when the checkpoint was there.
    """
    return _stage("quantize", request, lambda: _quantize(request), capture_output)


def _quantize(request: QuantizeRequest) -> None:
    started = time.perf_counter()
    from workers.pipeline import quantize

    start_seconds = time.perf_counter() - started
    manifest = quantize(request)
    if manifest is None:
        return
    result = QuantizeResult(
        checkpoint=request.quantize_key,
        reused=False,
        seconds=manifest.seconds,
        peak_memory_gib=manifest.peak_memory_gib,
        worker_start_seconds=start_seconds,
    )
    replace(Path(request.attempt_directory) / "quantize.json", to_json(result))


class EngineHost:
    """A process that keeps an engine warm and scores one cell after another."""

    def __init__(self, engine: str, tensor_parallel_size: int) -> None:
        """engine: vllm | transformers. Nothing heavy happens before the first cell."""
        self._engine = engine
        self._tensor_parallel_size = tensor_parallel_size
        self._evaluator: Any = None

    def evaluate(self, request: EvaluateRequest, *, capture_output: bool = True) -> Failure | None:
        """Score a cell. Writes result.json either way; the failure, if any, is returned too."""
        return _stage("evaluate", request, lambda: self._evaluate(request), capture_output)

    def _evaluate(self, request: EvaluateRequest) -> None:
        result = self._score(request)
        create(Path(request.attempt_directory) / "result.json", to_json(_succeeded(request, result)))

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


def _stage(
    stage: str, request: QuantizeRequest | EvaluateRequest, work: Callable[[], None], capture_output: bool
) -> Failure | None:
    """Do the work under the attempt's log. Without capture_output errors come through as they are, for debugging.

    After a failure that leaves the GPU unusable the process ends, unless the driver must be told what is not written.
    """
    attempt = Path(request.attempt_directory)
    with contextlib.ExitStack() as stack:
        try:
            written = stack.enter_context(attempt_log(attempt / "log.txt", capture_output=capture_output))
            load_secrets(request.secrets)
            written.hide(known_secrets(request.secrets))
            work()
            return None
        except Exception as error:
            if not capture_output:
                raise
            failure = _without_secrets(classify(stage, error), request)
            log.error("%s: %s\n%s", failure.kind, failure.message, failure.traceback)
            is_written = _write_failure(attempt, request, failure)
    if is_written and failure.kind in FATAL_KINDS:
        os._exit(EXIT_CODE)
    return failure


def _without_secrets(failure: Failure, request: QuantizeRequest | EvaluateRequest) -> Failure:
    mask = Redactor(known_secrets(request.secrets))
    trace = None if failure.traceback is None else mask(failure.traceback)
    return dataclasses.replace(failure, message=mask(failure.message), traceback=trace)


def _write_failure(attempt: Path, request: QuantizeRequest | EvaluateRequest, failure: Failure) -> bool:
    """Whether result.json could be written, which a storage that is full or gone does not allow."""
    try:
        quantize = _quantize_result(attempt)
        result = AttemptResult(request.evaluate_key, request.quantize_key, "FAILED", failure=failure, quantize=quantize)
        create(attempt / "result.json", to_json(result))
    except OSError as error:
        log.error("result.json cannot be written: %s", error)
        return False
    return True


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
