"""GPTQ of one linear: ours against a clean eager implementation, CPU time of one thread, both in this run.

Run as a script from the repository's root. It prints; nothing is asserted.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from conf.schema import GptqRound, MinmaxClip, UniformScheme
from workers.methods.clip.minmax import fit_grid
from workers.methods.grid import QuantParams
from workers.methods.loss import proxy_loss
from workers.methods.round.gptq import round_weight
from workers.methods.statistics import Statistics

SIZES = (1024, 4096)
REPEATS = 3
DAMPING = 0.01
BLOCK_SIZE = 128
SCHEME = UniformScheme(bits=4, scale_dtype="float32")


def eager_gptq(weight: Tensor, hessian: Tensor) -> Tensor:
    """Algorithm 1 of the paper, written plainly: Cholesky, inverse, Cholesky, right-looking updates of [out, in]."""
    params = _fit(weight)
    scale, zero_point = params.scale[:, 0], params.zero_point[:, 0].float()
    order = torch.argsort(hessian.diagonal(), descending=True)
    weight, damped = weight[:, order], hessian[order][:, order]
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    rounded = torch.empty_like(weight)
    for start in range(0, weight.shape[1], BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, weight.shape[1])
        block, own = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            code = torch.clamp(torch.round(block[:, i] / scale) + zero_point, 0, params.max_code)
            rounded[:, start + i] = scale * (code - zero_point)
            errors[:, i] = (block[:, i] - rounded[:, start + i]) / own[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * own[i, i + 1 :]
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return rounded[:, torch.argsort(order)]


def our_gptq(weight: Tensor, hessian: Tensor) -> Tensor:
    """The same through our rounding stage."""
    conf = GptqRound(damping=DAMPING, block_size=BLOCK_SIZE)
    rounded = round_weight(weight, Statistics(hessian), conf, SCHEME, _fit)
    return rounded.params.values(rounded.codes)


def main() -> None:
    """Print one line for each size: seconds of both, their ratio, and the losses, which must be alike."""
    torch.set_num_threads(1)
    for size in SIZES:
        generator = torch.Generator().manual_seed(size)
        weight = torch.randn(size, size, generator=generator)
        inputs = torch.randn(2 * size, size, generator=generator) * (torch.rand(size, generator=generator) + 0.1)
        hessian = inputs.mT @ inputs / len(inputs)
        seconds: dict[str, list[float]] = {"eager": [], "ours": []}
        losses: dict[str, float] = {}
        for _ in range(REPEATS):
            for name, implementation in (("eager", eager_gptq), ("ours", our_gptq)):
                elapsed, rounded = _timed(implementation, weight, hessian)
                seconds[name].append(elapsed)
                losses[name] = proxy_loss(weight - rounded, hessian)
        eager, ours = min(seconds["eager"]), min(seconds["ours"])
        print(
            f"{size} x {size}: eager {eager:.3f} s, ours {ours:.3f} s, ratio {eager / ours:.2f}; "
            f"proxy loss eager {losses['eager']:.6g}, ours {losses['ours']:.6g}"
        )


def _fit(weight: Tensor) -> QuantParams:
    return fit_grid(weight, MinmaxClip(), SCHEME)


def _timed(implementation: Callable[[Tensor, Tensor], Tensor], weight: Tensor, hessian: Tensor) -> tuple[float, Tensor]:
    start = time.thread_time()
    rounded = implementation(weight, hessian)
    return time.thread_time() - start, rounded


if __name__ == "__main__":
    main()
