"""The paper's two claims about sizes: a large model at few bits beside the small one of its family at four. Pure.

Perplexities of one family may be compared, since it shares a tokenizer. Each side is the best of the methods there.
"""

import itertools
from collections.abc import Sequence

from orchestrator.report import text
from orchestrator.report.claims import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Verdict
from orchestrator.report.losses import Loss

FAMILIES = (  # models of one tokenizer and one training text, from the smallest
    ("llama1-7b", "llama1-13b", "llama1-30b", "llama1-65b"),
    ("llama2-7b", "llama2-13b", "llama2-70b"),
    ("llama3-8b", "llama3-70b"),
    ("llama3.1-8b", "llama3.1-70b"),
)
SMALL_BITS = 4
CLAIMS = (  # claim, bits of the large model, whether it is the better one
    ("a large model at 2 bits is worse than the small one of its family at 4", 2, False),
    ("a large model at 3 bits is better than the small one of its family at 4", 3, True),
)


def family_verdicts(losses: Sequence[Loss]) -> list[Verdict]:
    """Of both claims. losses: of one protocol, of a perplexity."""
    best: dict[tuple[str, int], float] = {}
    for loss in losses:
        if loss.score is not None:
            place = (loss.subject.model, loss.bits)
            best[place] = min(loss.score, best.get(place, loss.score))
    return [_verdict(claim, bits, better, best) for claim, bits, better in CLAIMS]


def _verdict(claim: str, bits: int, better: bool, best: dict[tuple[str, int], float]) -> Verdict:
    pairs = [pair for family in FAMILIES for pair in itertools.combinations(family, 2)]
    found = [
        (small, large, best[small, SMALL_BITS], best[large, bits])
        for small, large in pairs
        if (small, SMALL_BITS) in best and (large, bits) in best
    ]
    if not found:
        return Verdict(claim, NOT_TESTABLE, (f"no two models of a family with values at {bits} and {SMALL_BITS} bits",))
    holds = all((at_few < at_four) is better for _, _, at_four, at_few in found)
    words = tuple(
        f"{large} w{bits} {text.number(at_few, 2)}, {small} w{SMALL_BITS} {text.number(at_four, 2)}"
        for small, large, at_four, at_few in found
    )
    return Verdict(claim, REPRODUCED if holds else NOT_REPRODUCED, words)
