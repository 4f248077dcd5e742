"""The evaluate stage: a checkpoint into an engine, then perplexities and benchmark tasks."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.api import EvaluateRequest, EvaluateResult, Manifest, Metric
from workers.errors import BadInputError, NumericalError
from workers.evaluator import Evaluator, context_length, engine_dtype, read_config

Windows = npt.NDArray[np.int64]


def evaluate(evaluator: Evaluator, request: EvaluateRequest) -> EvaluateResult:
    """Load the checkpoint of `request.quantize_key` and score it on the suite. Raises the errors of workers.errors."""
    import torch

    from workers.checkpoint import checkpoint_directory
    from workers.model_files import load_tokenizer, local_directory
    from workers.process import peak_memory_gib, reset_peak_memory

    device = torch.device(_device())
    reset_peak_memory(device)
    suite = request.suite
    checkpoint = checkpoint_directory(Path(request.storage), request.quantize_key)
    manifest = _manifest(checkpoint)
    source = local_directory(request.model)
    tokenizer = load_tokenizer(request.model, source)
    seconds: dict[str, float] = {}
    with _timed(seconds, "text"):
        windows = {task: _windows(request, task, tokenizer) for task in suite.perplexity}
    config = read_config(source)
    dtype = engine_dtype(request.dtype, config)
    with _timed(seconds, "load"), _servable(checkpoint, source, manifest, dtype, request.storage) as directory:
        loaded = evaluator.load(directory, dtype, manifest.canary, context_length(suite, config))
    metrics: list[Metric] = []
    with _timed(seconds, "perplexity"):
        for task in windows:
            metrics += score_perplexity(evaluator, task, windows[task])
    if suite.tasks:
        with _timed(seconds, "tasks"):
            from workers.harness import run_tasks

            files = request.texts.get("tasks")
            task_path = None if files is None or files.location is None else Path(files.location)
            metrics += run_tasks(evaluator, tokenizer, suite.tasks, task_path, suite.limit)
    return EvaluateResult(
        metrics=metrics,
        engine_version=evaluator.version,
        swap=loaded.swap,
        canary_difference=loaded.canary_difference,
        seconds=seconds | {f"load.{step}": value for step, value in loaded.seconds.items()},
        peak_memory_gib=peak_memory_gib(device),
    )


def score_perplexity(evaluator: Evaluator, task: str, windows: Windows) -> list[Metric]:
    """Perplexity of windows, int64 [n, length], each on its own and with float32 logits.

    `<task>.mean_nll`: mean over windows of the mean NLL of tokens 1 to length - 1, standard error over windows (null for
    one window). `<task>.perplexity`: its exponential, with the delta method's standard error; the protocol of GPTQ
    (Frantar et al. 2023). Raises NumericalError when a log-probability is not finite.
    """
    nll = np.array([-float(s.logprobs.mean()) for s in evaluator.score(windows.tolist())])
    if not np.isfinite(nll).all():
        raise NumericalError(f"{task}: window {int(np.argmin(np.isfinite(nll)))} has a log-probability that is not finite")
    count = len(nll)
    mean = float(nll.mean())
    stderr = float(nll.std(ddof=1)) / count**0.5 if count > 1 else None
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))  # inf beyond 709 nats, which is what it then is
    return [
        Metric(f"{task}.perplexity", perplexity, None if stderr is None else perplexity * stderr, count, "1"),
        Metric(f"{task}.mean_nll", mean, stderr, count, "nats/token"),
    ]


def open_evaluator(engine: str, tensor_parallel_size: int) -> Evaluator:
    """The evaluator named `engine` (vllm | transformers), on the GPU where this process sees one. Holds nothing yet."""
    if engine == "transformers":
        from workers.transformers_evaluator import TransformersEvaluator

        return TransformersEvaluator(device=_device())
    from workers.engine.environment import ENVIRONMENT

    os.environ.update(ENVIRONMENT)  # read while vllm is imported
    from workers.engine.vllm_evaluator import VllmEvaluator

    return VllmEvaluator(device=_device(), tensor_parallel_size=tensor_parallel_size)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _manifest(checkpoint: Path) -> Manifest:
    from workers.checkpoint import is_intact, read_manifest

    manifest = read_manifest(checkpoint)
    if manifest is None:
        raise BadInputError(f"{checkpoint}: no finished checkpoint; run the sweep again to make it")
    if not is_intact(checkpoint, manifest):
        raise BadInputError(f"{checkpoint}: a file is not what the manifest says; delete the directory and run again")
    return manifest


def _windows(request: EvaluateRequest, task: str, tokenizer: Any) -> Windows:
    from workers.calibration import evaluation_windows
    from workers.datasets import load_content

    text = request.texts[task]
    return evaluation_windows(text.source, load_content(text), tokenizer, request.suite.sequence_length)


@contextmanager
def _servable(checkpoint: Path, source: Path, manifest: Manifest, dtype: str, storage: str) -> Iterator[Path]:
    """The directory an engine loads: the model's own, or a packed checkpoint multiplied out and gone afterwards."""
    if manifest.weight_format == "source":
        yield source
        return
    from workers.export import write_dense

    with tempfile.TemporaryDirectory(prefix=".dense-", dir=storage) as temporary:
        dense = Path(temporary) / "model"
        write_dense(checkpoint, dense, dtype)
        yield dense


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started
