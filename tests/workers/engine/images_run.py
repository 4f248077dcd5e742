"""Models that see under vLLM, in a process of its own: what they score and answer.

    python images_run.py <input.json> <output.json>

input: loads (name, directory, canary as rows of log-probabilities), prompts (token ids), questions (seed of an image,
words), context. output: one entry for each load.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from workers.engine.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT)

from tests.workers.test_transformers_images import prompt
from workers.api import Canary
from workers.engine.vllm_evaluator import VllmEvaluator


def run(given: dict[str, Any]) -> dict[str, Any]:
    """One engine after the other, as the loads need them."""
    evaluator = VllmEvaluator(device="cpu")
    questions = [prompt(seed, words) for seed, words in given["questions"]]
    result = {}
    for name, directory, rows in given["loads"]:
        canary = Canary(tokens=given["prompts"], reference=rows, quantized=rows)
        loaded = evaluator.load(Path(directory), "float32", canary, given["context"])
        result[name] = {
            "swap": loaded.swap,
            "scores": [scores.logprobs.tolist() for scores in evaluator.score(given["prompts"])],
            "answers": evaluator.answer(questions, given["max_new_tokens"]),
        }
    evaluator.close()
    return result


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
