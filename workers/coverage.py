"""Experts that few calibration tokens reached: how many did, and what stands in for those that did not.

With fewer tokens than inputs a Hessian is singular and says nothing of most directions, and an expert without a token
has none. `calibration.experts` says what becomes of them; a linear whose statistics are not its own is `degraded`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from workers.experts import Experts
from workers.statistics import GroupStatistics, GroupSums

log = logging.getLogger(__name__)

COLUMNS = 8  # of the table of tokens


@contextmanager
def calibrated(block: nn.Module, policy: str) -> Iterator[None]:
    """Inside, every expert of the block sees all tokens where the policy is `all`; what the block computes stays."""
    experts = [module for module in block.modules() if isinstance(module, Experts)]
    for module in experts:
        module.sees_all = policy == "all"
    try:
        yield
    finally:
        for module in experts:
            module.sees_all = False


def cover(statistics: GroupStatistics, policy: str, where: str) -> None:
    """Fill in what is missing of the experts that fewer tokens reached than they have inputs, and log the tokens.

    policy: `blend` adds as many tokens as there are inputs from the mean over the tokens of all experts of the block;
    `nearest` takes inputs to be white, so that every rounding is to nearest; `own` and `all` leave what there is.
    """
    for family, names in statistics.families.items():
        sums = [statistics.sums[name] for name in names if name in statistics.sums]
        if not sums:
            continue
        log.info("%s %s: %s", where, family, _table([one.num_tokens for one in sums]))
        if policy in ("blend", "nearest"):
            _cover(sums, policy)


def is_short(num_tokens: int, in_features: int) -> bool:
    """Whether a Hessian of so many tokens is singular."""
    return num_tokens < in_features


def _cover(family: list[GroupSums], policy: str) -> None:
    short = [sums for sums in family if is_short(sums.num_tokens, sums.in_features)]
    if not short:
        return
    in_features, total = family[0].in_features, sum(sums.num_tokens for sums in family)
    instead = "blended with those of all experts" if policy == "blend" else "taken to be white"
    samples = [part for sums in family for part in sums.sample]
    for sums in short:
        sums.degraded = f"{sums.num_tokens} tokens for {in_features} inputs, which are {instead}"
    grams = [sums.gram for sums in family if sums.gram is not None]
    if grams and policy == "nearest":
        for sums in short:
            sums.gram = torch.eye(in_features, device=grams[0].device)
            sums.num_borrowed = 1 - sums.num_tokens
    elif grams:
        shared = torch.zeros_like(grams[0])
        for gram in grams:
            shared += gram
        shared *= in_features / total
        for sums in short:
            assert sums.gram is not None
            sums.gram += shared
            sums.num_borrowed = in_features
    if samples:
        pooled = torch.cat(samples)[:: len(family)]  # as many as an expert has in the mean
        for sums in short:
            sums.sample = [*sums.sample, pooled.clone()]


def _table(tokens: list[int]) -> str:
    """How many tokens each expert saw, a row of eight experts after the other."""
    rows = [tokens[start : start + COLUMNS] for start in range(0, len(tokens), COLUMNS)]
    lines = [f"  {COLUMNS * i:3d}:" + "".join(f"{count:9d}" for count in row) for i, row in enumerate(rows)]
    return "\n".join([f"tokens of each expert, {sum(tokens)} in all, {tokens.count(0)} without any", *lines])
