"""What the vLLM tests look at, done once in a process of its own: vLLM changes the process that imports it for good.

    python vllm_run.py <input.json> <output.json>

input: directories of models, canaries and prompts, see test_vllm_evaluator.py. output: one entry for each step below.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from workers.engine.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT)
started = time.perf_counter()

import numpy as np  # noqa: E402
import torch._dynamo.utils  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from workers.api import Canary  # noqa: E402
from workers.engine.vllm_evaluator import VllmEvaluator  # noqa: E402
from workers.errors import EngineError, ParityError  # noqa: E402
from workers.evaluate import score_perplexity  # noqa: E402
from workers.harness import HarnessModel  # noqa: E402

import_seconds = time.perf_counter() - started


def run(given: dict[str, Any]) -> dict[str, Any]:
    """Every step uses the one engine that the steps before it left."""
    evaluator = VllmEvaluator(device="cpu")
    prompts: list[list[int]] = given["prompts"]
    first, second = Path(given["first"]), Path(given["second"])
    canaries = {
        name: Canary(tokens=prompts, reference=rows, quantized=rows) for name, rows in given["canaries"].items()
    }
    result: dict[str, Any] = {"import_seconds": import_seconds}

    def load(step: str, directory: Path, canary: str, dtype: str = "float32", max_length: int = 256) -> None:
        loaded = evaluator.load(directory, dtype, canaries[canary], max_length)
        scores = [s.logprobs.tolist() for s in evaluator.score(prompts)]
        result[step] = {"swap": loaded.swap, "difference": loaded.canary_difference, "scores": scores}
        result[step]["seconds"] = loaded.seconds

    def failure(directory: Path, canary: str) -> list[str]:
        try:
            evaluator.load(directory, "float32", canaries[canary], 256)
            evaluator.score(prompts)
        except (EngineError, ParityError) as error:
            return [type(error).__name__, str(error)]
        return ["", "nothing was raised"]

    load("first", first, "first")
    load("second", second, "second")
    load("first again", first, "first")
    started = time.perf_counter()
    tokens = np.load(given["tokens"]).astype(np.int64)
    windows = tokens[: len(tokens) // 256 * 256].reshape(-1, 256)
    result["perplexity"] = score_perplexity(evaluator, "held", windows)[0].value
    result["perplexity_seconds"] = time.perf_counter() - started
    result["greedy"] = [s.is_argmax.tolist() for s in evaluator.score(prompts)]
    result["continuations"] = evaluator.generate([p[:20] for p in prompts[:2]], 12, given["stop_tokens"])
    model = HarnessModel(evaluator, AutoTokenizer.from_pretrained(first))
    pairs = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(given["pairs"])]
    result["log_likelihoods"] = model.loglikelihood(pairs, disable_tqdm=True)

    result["wrong weights"] = failure(first, "second")
    load("second alone", second, "second")
    load("whole context", first, "first", max_length=given["context"])
    result["whole window"] = evaluator.score([given["whole_window"]])[0].logprobs.tolist()
    load("bfloat16", first, "first", dtype="bfloat16")
    assert evaluator._llm is not None
    evaluator._llm.collective_rpc = lambda *arguments, **keywords: []  # type: ignore[method-assign]
    load("reload does nothing", second, "second", dtype="bfloat16")
    result["head size 8"] = failure(Path(given["small_heads"]), "first")
    load("after a failure", first, "first")
    evaluator.close()
    result["compiled_frames"] = sum(torch._dynamo.utils.counters["frames"].values())
    return result


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    destination.write_text(json.dumps(run(json.loads(source.read_text()))))
