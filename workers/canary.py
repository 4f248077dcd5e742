"""Whether an engine holds the weights it should: its log-probabilities of eight prompts against the manifest's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.api import Canary
from workers.errors import ParityError
from workers.evaluator import Evaluator

# The canary's tolerance: mean |difference| of the log-probabilities <= roundoffs x unit roundoff x mean NLL.
#
# A log-probability is a difference of logits, and every correct load, with 16-bit or mangled weights alike, showed an
# error of about one unit roundoff of it where sums are kept in float32: 0.7 to 1.1 in bfloat16, 0.8 to 1.6 in float16
# (LLaMA of 4 and 5 blocks; unquantized, 4 to 2 bits, random; NLL 3 to 18). Rounding errors of blocks are independent, so
# the error grows with the root of the depth: 8 is 1.6 at 4 blocks, brought to 80, and rounded up. In float32 the sums
# round too: 7 measured at 704 summands, 7 x sqrt(80 / 4) x sqrt(28672 / 704) = 200, rounded up to leave room for other
# kernels. Wrong weights are far outside: 4-bit rounding alone is 11 roundoffs of bfloat16, an expert in the wrong place
# hundreds.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ALLOWED_ROUNDOFFS = {"float32": 1024, "float16": 8, "bfloat16": 8}
# Logits do not shrink with the loss: a model surer than this still rounds as if it were not (nats).
MIN_NLL = 2.0


@dataclass(frozen=True)
class CanaryDifference:
    """|engine - manifest| of the canary's log-probabilities: mean and maximum in nats, mean also over the mean NLL."""

    mean: float
    maximum: float
    relative: float

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
    mean = float(difference.mean())
    return CanaryDifference(mean, float(difference.max()), mean / max(MIN_NLL, -float(expected.mean())))


def require_parity(evaluator: Evaluator, directory: Path, dtype: str, difference: CanaryDifference) -> None:
    """Raise ParityError, with the numbers and what next, unless rounding explains the difference."""
    if difference.allowed(dtype):
        return
    other = "transformers" if evaluator.name == "vllm" else "vllm"
    explained = tolerance(dtype) * difference.mean / difference.relative
    raise ParityError(
        f"{directory}: {evaluator.name} {evaluator.version} in {dtype} differs from the manifest's canary "
        f"log-probabilities by {difference.mean:.3g} nats on average, {difference.maximum:.3g} at most; rounding explains "
        f"{explained:.3g} on average. The checkpoint is kept: score it with engine={other} to see which side is wrong"
    )
