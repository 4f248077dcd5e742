"""The evaluate stage: a checkpoint into an engine, then perplexities and benchmark tasks."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.api import EvaluateRequest, EvaluateResult, Manifest, Metric
from workers.calibration import Windows, check_token_ids, evaluation_windows
from workers.checkpoint import CheckpointReader, damage, read_manifest
from workers.datasets import load_content, verified
from workers.engine.environment import ENVIRONMENT
from workers.errors import BadInputError, NumericalError
from workers.evaluator import Evaluator, context_length, engine_dtype, read_config, text_config, timed
from workers.export import ordinary, write_dense
from workers.image_benchmarks import read_benchmark
from workers.image_questions import image_task
from workers.layout import checkpoint_directory
from workers.model_files import load_tokenizer, local_directory
from workers.process import peak_memory_gib, reset_peak_memory
from workers.task_files import own_task, task_file_key


def evaluate(evaluator: Evaluator, request: EvaluateRequest) -> EvaluateResult:
    """Load the checkpoint of `request.quantize_key` and score it on the suite. Raises the errors of workers.errors."""
    device = torch.device(_device())
    reset_peak_memory(device)
    suite = request.suite
    source = local_directory(request.model)
    config = read_config(source)
    dtype = engine_dtype(request.dtype, config)
    tokenizer = load_tokenizer(request.model, source)
    checkpoint = checkpoint_directory(Path(request.storage), request.quantize_key)
    seconds: dict[str, float] = {}
    with timed(seconds, "text"):
        vocab_size = int(text_config(config)["vocab_size"])
        windows = {task: _windows(request, task, tokenizer, vocab_size) for task in suite.perplexity}
    with timed(seconds, "hash"):
        manifest = _manifest(checkpoint)
    length = max(context_length(suite, config), *map(len, manifest.canary.tokens))
    with _servable(checkpoint, source, manifest, dtype, seconds) as directory, timed(seconds, "load"):
        loaded = evaluator.load(directory, dtype, manifest.canary, length)
    metrics: list[Metric] = []
    with timed(seconds, "perplexity"):
        for task, tokens in windows.items():
            metrics += score_perplexity(evaluator, task, tokens)
    if suite.tasks:
        with timed(seconds, "tasks"):
            metrics += _score_tasks(evaluator, tokenizer, request)
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

    `<task>.mean_nll`: mean over windows of the mean NLL of tokens 1 to length - 1, standard error over windows (null
    for one window). `<task>.perplexity`: its exponential, with the delta method's standard error; the protocol of GPTQ
    (Frantar et al. 2023). Raises NumericalError when a log-probability is not finite.
    """
    nll = np.array([-float(s.logprobs.mean()) for s in evaluator.score(windows.tolist())])
    if not np.isfinite(nll).all():
        window = int(np.argmin(np.isfinite(nll)))
        raise NumericalError(f"{task}: window {window} has a log-probability that is not finite")
    count = len(nll)
    mean = float(nll.mean())
    stderr = float(nll.std(ddof=1)) / count**0.5 if count > 1 else None
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))  # inf beyond 709 nats, which is what it then is
    return [
        Metric(f"{task}.perplexity", perplexity, None if stderr is None else perplexity * stderr, count, "1"),
        Metric(f"{task}.mean_nll", mean, stderr, count, "nats/token"),
    ]


def _score_tasks(evaluator: Evaluator, tokenizer: Any, request: EvaluateRequest) -> list[Metric]:
    from workers.harness import run_tasks  # here: a suite without tasks does not pay for it

    suite, own = request.suite, {}
    for task in suite.tasks:
        ref = request.texts.get(task_file_key(task))
        if ref is not None and ref.location is None:
            own[task] = image_task(task, read_benchmark(task, ref.fingerprint))
        elif ref is not None:
            own[task] = own_task(task, verified(ref), suite.task_files[task])
    folder = request.texts.get("tasks")
    task_path = None if folder is None else verified(folder)
    return run_tasks(evaluator, tokenizer, suite.tasks, task_path, suite.limit, own=own)


def open_evaluator(engine: str, tensor_parallel_size: int) -> Evaluator:
    """The evaluator named `engine` (vllm | transformers), on the GPU where this process sees one. Holds nothing yet."""
    if engine == "transformers":
        from workers.transformers_evaluator import TransformersEvaluator

        return TransformersEvaluator(device=_device())
    os.environ.update(ENVIRONMENT)
    from workers.engine.vllm_evaluator import VllmEvaluator

    return VllmEvaluator(device=_device(), tensor_parallel_size=tensor_parallel_size)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _manifest(checkpoint: Path) -> Manifest:
    manifest = read_manifest(checkpoint)
    if manifest is None:
        raise BadInputError(f"{checkpoint}: no finished checkpoint; resubmit makes it anew")
    if (found := damage(checkpoint, manifest)) is not None:
        raise BadInputError(f"{found}; resubmit makes the checkpoint anew")
    return manifest


def _windows(request: EvaluateRequest, task: str, tokenizer: Any, vocab_size: int) -> Windows:
    text = request.texts[task]
    windows = evaluation_windows(text.source, load_content(text), tokenizer, request.suite.sequence_length)
    check_token_ids(windows, vocab_size)
    return windows


@contextmanager
def _servable(
    checkpoint: Path, source: Path, manifest: Manifest, dtype: str, seconds: dict[str, float]
) -> Iterator[Path]:
    """The directory an engine loads: the model's own, or a packed checkpoint multiplied out and gone afterwards."""
    if manifest.weight_format == "source":
        CheckpointReader(source).require_whole()  # an engine would name neither the file nor what is missing
        with ordinary(source) as directory:
            yield directory
        return
    with tempfile.TemporaryDirectory(prefix=".dense-", dir=checkpoint.parent) as temporary:
        dense = Path(temporary) / "model"
        with timed(seconds, "dense"):
            write_dense(checkpoint, dense, dtype)
        yield dense
