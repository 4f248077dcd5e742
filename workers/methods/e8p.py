"""E8P, 65,536 points in eight dimensions: 16 bits for 8 weights (Tseng et al. 2024, QuIP#, section 4.2).

Half-integer vectors with an even sum form the lattice D8 + 1/2; moved by 1/4 or by -1/4 it is one half of a moved E8.
E8P takes the magnitudes of 256 of them: all 227 of squared norm at most 10, and 29 of the 56 of squared norm 12 that
have entries 1/2 and 3/2. A magnitude vector has 2^7 signs, for the parity of its sum leaves no choice for the last.

Which 29 is a list in the original code and no rule. Any 29 give a codebook of this size, and theirs and ours the same
Gaussian error within 0.01 %. Ours: of the five places with 3/2, ascending by their sum modulo 8, then in lexicographic
order, which spreads them evenly.
A code is magnitudes << 8 | signs of the first seven places << 1 | 1 where 1/4 is added.
"""

import functools
import itertools

import torch
from torch import Tensor

from workers.methods.accounting import VECTOR_SIZE

SHIFT = 0.25
VECTORS_AT_ONCE = 1 << 16  # bounds the working memory to some 10 MiB

# Magnitudes as they stand when sorted, largest first: five with 1/2 and 3/2 alone, two with a 5/2.
_SORTED = [[1.5] * k + [0.5] * (8 - k) for k in range(5)] + [[2.5] + [0.5] * 7, [2.5, 1.5] + [0.5] * 6]
_NUM_OUTER = 29


@functools.cache
def magnitudes(device: torch.device) -> Tensor:
    """[256, 8] float32: the 227 of squared norm at most 10, then the 29 of squared norm 12."""
    inner = sorted({arranged for pattern in _SORTED for arranged in itertools.permutations(pattern)})
    return torch.tensor([*inner, *_outer()], device=device)


def _outer() -> list[tuple[float, ...]]:
    places = sorted(itertools.combinations(range(VECTOR_SIZE), 5), key=lambda fives: (sum(fives) % VECTOR_SIZE, fives))
    return [tuple(1.5 if i in fives else 0.5 for i in range(VECTOR_SIZE)) for fives in places[:_NUM_OUTER]]


@functools.cache
def vectors(device: torch.device) -> Tensor:
    """[65536, 8] float32, by code."""
    codes = torch.arange(1 << 16, device=device)
    sizes = magnitudes(device)[codes >> 8]
    bits = codes[:, None] >> torch.arange(1, VECTOR_SIZE, device=device) & 1
    last = (bits.sum(1) + _sum_is_odd(sizes)) % 2
    negative = torch.cat([bits, last[:, None]], 1)
    shift = SHIFT * (2 * (codes & 1) - 1)
    return sizes * (1 - 2 * negative) + shift[:, None]


def nearest(points: Tensor) -> Tensor:
    """Codes of the nearest vectors: [N, 8] float32 or float64 -> [N] int32. Exact; of equals, any."""
    return torch.cat([_nearest(some) for some in points.split(VECTORS_AT_ONCE)])


def _nearest(points: Tensor) -> Tensor:
    code, error = _nearest_unshifted(torch.cat([points + SHIFT, points - SHIFT]))
    (low, high), (low_error, high_error) = code.chunk(2), error.chunk(2)
    return torch.where(high_error < low_error, high << 1 | 1, low << 1)


def _nearest_unshifted(points: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 8] -> the 15 bits of the nearest vector before the shift, and its squared distance.

    The best signs are the point's own; where the parity forbids them, those with one changed, at the place where
    magnitude times |point| is smallest. Of magnitudes in any order the best one is sorted like |point|, so seven
    candidates stand for the 227. The 29 are tried where the bound that all 56 share lets them win.
    """
    size = points.abs()
    odd = (points < 0).sum(1) % 2
    ordered, places = size.sort(descending=True)
    inner, score = _best_inner(ordered, places, odd)
    best = _signed(points, inner, odd)
    ahead = (ordered[:, :5].sum(1) - 5 > score).nonzero().flatten()
    if len(ahead):
        outer = _best_outer(size[ahead], odd[ahead])
        other = _signed(points[ahead], outer, odd[ahead])
        closer = _distance(points[ahead], other) < _distance(points[ahead], best[ahead])
        best[ahead] = torch.where(closer[:, None], other, best[ahead])
    digits = (best.abs() - 0.5).long()
    pattern = _index_of_digits(points.device)[(digits * _powers(3, points.device)).sum(1)]
    signs = ((best[:, :-1] < 0) * _powers(2, points.device)[:-1]).sum(1)
    return (pattern << 7 | signs).int(), _distance(points, best)


def _best_inner(ordered: Tensor, places: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the 227 [N, 8], and what it scores [N].

    ordered, places: [N, 8], |point| sorted, largest first, and where each stood. odd: [N], whether the point has an odd
    number of minus signs. The score is <|point|, magnitudes> - norm^2 / 2, less that of magnitudes of 1/2 alone.
    """
    sums = torch.cat([torch.zeros_like(ordered[:, :1]), ordered[:, :4].cumsum(1)], 1)
    first, second, smallest = ordered[:, 0], ordered[:, 1], ordered[:, 7]
    with_five = torch.stack([2 * first - 3, 2 * first + second - 4], 1)
    scores = torch.cat([sums - torch.arange(5, device=ordered.device), with_five], 1)
    patterns = torch.tensor(_SORTED, dtype=ordered.dtype, device=ordered.device)
    mismatch = _sum_is_odd(patterns) != odd[:, None]
    score, chosen = (scores - smallest[:, None] * mismatch).max(1)
    return torch.empty_like(ordered).scatter_(1, places, patterns[chosen]), score


def _best_outer(size: Tensor, odd: Tensor) -> Tensor:
    """The best of the 29, whose sums are odd: [N, 8] -> [N, 8]."""
    patterns = magnitudes(size.device)[-_NUM_OUTER:].to(size.dtype)
    change = (size[:, None] * patterns).amin(-1)
    scores = size @ patterns.mT - 2 * change * (odd == 0)[:, None]
    return patterns[scores.argmax(1)]


def _signed(points: Tensor, sizes: Tensor, odd: Tensor) -> Tensor:
    """Magnitudes with the signs of the points, the cheapest one changed where the sum would be odd."""
    signed = sizes.copysign(points)
    cheapest = (sizes * points.abs()).argmin(1, keepdim=True)
    change = 1 - 2 * (_sum_is_odd(sizes) != odd).to(sizes.dtype)
    return signed.scatter_(1, cheapest, signed.gather(1, cheapest) * change[:, None])


def _sum_is_odd(sizes: Tensor) -> Tensor:
    """[N, 8] of magnitudes, whose sums are integers -> [N]: 1 or 0."""
    return sizes.sum(1).long() % 2


def _distance(points: Tensor, others: Tensor) -> Tensor:
    return (points - others).square_().sum(1)


@functools.cache
def _powers(base: int, device: torch.device) -> Tensor:
    return torch.tensor([base**i for i in range(VECTOR_SIZE)], device=device)


@functools.cache
def _index_of_digits(device: torch.device) -> Tensor:
    """[3^8]: magnitudes as digits 0, 1, 2 for 1/2, 3/2, 5/2 -> their number."""
    digits = (magnitudes(device) - 0.5).long()
    table = torch.zeros(3**VECTOR_SIZE, dtype=torch.long, device=device)
    table[(digits * _powers(3, device)).sum(1)] = torch.arange(len(digits), device=device)
    return table
