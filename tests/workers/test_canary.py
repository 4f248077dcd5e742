"""The canary check: what rounding explains passes, wrong weights do not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from workers.api import Canary
from workers.canary import ALLOWED_ROUNDOFFS, UNIT_ROUNDOFF, canary_difference, require_parity, tolerance
from workers.errors import ParityError
from workers.evaluator import DTYPES, Loaded, TokenScores

EXPECTED = -3.0


class ShiftedEvaluator:
    """Answers with the expected log-probabilities plus `shift`, on the first token only when `once`."""

    name, version, max_length = "vllm", "0", 64

    def __init__(self, shift: float, *, expected: float = EXPECTED, once: bool = False) -> None:
        self.shift, self.expected, self.once = shift, expected, once

    def load(self, directory: Path, dtype: str, canary: Canary | None, max_length: int) -> Loaded:
        raise NotImplementedError

    def score(self, prompts: Sequence[Sequence[int]]) -> list[TokenScores]:
        scores = []
        for index, prompt in enumerate(prompts):
            logprobs = np.full(len(prompt) - 1, self.expected)
            logprobs[: 1 if self.once else None] += 0.0 if self.once and index else self.shift
            scores.append(TokenScores(logprobs, np.zeros(len(prompt) - 1, dtype=bool)))
        return scores

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def canary(expected: float = EXPECTED) -> Canary:
    tokens = [[1] * 5, [2] * 9]
    rows = [[expected] * 4, [expected] * 8]
    return Canary(tokens=tokens, reference=rows, quantized=rows)


def test_the_difference_is_a_mean_and_a_maximum_over_all_tokens() -> None:
    difference = canary_difference(ShiftedEvaluator(0.6, once=True), canary())
    assert difference.mean == pytest.approx(0.6 / 12)
    assert difference.maximum == pytest.approx(0.6)
    assert difference.relative == pytest.approx(0.6 / 12 / 3.0)


@pytest.mark.parametrize(("dtype", "measured"), [("float32", 1.4e-6), ("float16", 2e-3), ("bfloat16", 1.5e-2)])
def test_rounding_noise_as_measured_on_llama_passes(dtype: str, measured: float) -> None:
    require_parity(ShiftedEvaluator(0), Path("x"), dtype, canary_difference(ShiftedEvaluator(-measured), canary()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bit_rounding_taken_for_the_original_fails_in_every_dtype(dtype: str) -> None:
    difference = canary_difference(ShiftedEvaluator(0.13), canary())
    with pytest.raises(ParityError, match=r"0\.13 nats on average.*engine=transformers"):
        require_parity(ShiftedEvaluator(0), Path("checkpoint"), dtype, difference)


def test_nan_is_never_explained_by_rounding() -> None:
    assert not canary_difference(ShiftedEvaluator(float("nan")), canary()).allowed("bfloat16")


def test_a_collapsed_model_may_round_in_proportion_to_its_loss() -> None:
    shift = 0.1
    assert not canary_difference(ShiftedEvaluator(shift), canary()).allowed("bfloat16")
    assert canary_difference(ShiftedEvaluator(shift, expected=-12.0), canary(-12.0)).allowed("bfloat16")


def test_a_sure_model_is_not_held_to_less_than_its_logits_round() -> None:
    sure = canary_difference(ShiftedEvaluator(0.05, expected=-0.1), canary(-0.1))
    assert sure.scale == 2.0 and sure.allowed("bfloat16")


def test_coarser_dtypes_are_allowed_more() -> None:
    assert tolerance("float32") < tolerance("float16") < tolerance("bfloat16")
    assert set(ALLOWED_ROUNDOFFS) == set(UNIT_ROUNDOFF) == set(DTYPES)
