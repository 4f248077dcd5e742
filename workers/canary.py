"""Whether an engine holds the weights it should: its log-probabilities of eight prompts against the manifest's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.api import Canary
from workers.errors import ParityError
from workers.evaluator import Evaluator

# How far a correct load may be from the manifest: mean |difference| <= roundoffs x unit roundoff x mean NLL.
#
# Measured on correct loads, in unit roundoffs: bfloat16 0.7 (Mamba-2), 0.7 to 1.1 (LLaMA), 1.7 (DeepSeek-V2), 2.2
# (Mixtral, whose routing flips); float16 0.8 to 1.6; float32, where the sums round too, 5 to 12. Four or five blocks
# each, NLL from 3 to 18, weights trained, quantized to 4 to 2 bits or random. Blocks round independently, so the error
# of 80 is about sqrt(80 / 4) = 4.5 times that of 4: 8 roundoffs hold a deep model whose noise per block is LLaMA's.
# In float32 12 x 4.5 x sqrt(28672 / 704) for the longer sums is 340; three times that leaves room for other kernels.
# Wrong weights are outside: rounding to 4 bits moves 11 roundoffs of bfloat16, experts left over from another
# checkpoint 20 to 55.
ALLOWED_ROUNDOFFS = {"float32": 1024, "float16": 8, "bfloat16": 8}
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
MIN_NLL = 2.0  # nats; the logits of a model surer than this do not shrink with its loss


@dataclass(frozen=True)
class CanaryDifference:
    """|engine - manifest| of the canary's log-probabilities, in nats. scale: mean NLL of the manifest's, or MIN_NLL."""

    mean: float
    maximum: float
    scale: float

    @property
    def relative(self) -> float:
        return self.mean / self.scale

    def allowed(self, dtype: str) -> bool:
        """Whether rounding in `dtype` explains it; NaN never is."""
        return self.relative <= tolerance(dtype)


def tolerance(dtype: str) -> float:
    """Largest `CanaryDifference.relative` that a correct load may show."""
    return ALLOWED_ROUNDOFFS[dtype] * UNIT_ROUNDOFF[dtype]


def canary_difference(evaluator: Evaluator, canary: Canary) -> CanaryDifference:
    """Score the canary's prompts and compare with `canary.quantized`."""
    scores = evaluator.score(canary.tokens)
    expected = np.concatenate([np.asarray(row, dtype=np.float64) for row in canary.quantized])
    difference = np.abs(np.concatenate([s.logprobs for s in scores]) - expected)
    scale = max(MIN_NLL, -float(expected.mean()))
    return CanaryDifference(float(difference.mean()), float(difference.max()), scale)


def require_parity(evaluator: Evaluator, directory: Path, dtype: str, difference: CanaryDifference) -> None:
    """Raise ParityError, with the numbers and what next, unless rounding explains the difference."""
    if difference.allowed(dtype):
        return
    other = "transformers" if evaluator.name == "vllm" else "vllm"
    raise ParityError(
        f"{directory}: {evaluator.name} {evaluator.version} in {dtype} differs from the manifest's canary "
        f"log-probabilities by {difference.mean:.3g} nats on average, {difference.maximum:.3g} at most; rounding "
        f"explains {tolerance(dtype) * difference.scale:.3g} on average. The checkpoint is kept: score it with "
        f"engine={other} to see which side is wrong"
    )
