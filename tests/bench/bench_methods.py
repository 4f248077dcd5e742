"""Our methods against the same algorithms written plainly, and against other tools: CPU time of one thread, one table.

Run as a script from the repository's root. It prints; nothing is asserted. Ratios are of one run; the first line says
how fast this machine multiplies matrices meanwhile. ARGS: `layers` or `models` alone; `--bits`.

Layers: random weights and uneven inputs. Models: mini_reference of the shared directory, 128 x 256 tokens, perplexity
of all of its held tokens; imports and scoring are not in the seconds. Other tools are run where they are installed
beside our packages: nothing here needs them.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import AwqScale, UniformScheme
from tests.bench import tools
from tests.bench.baselines import textbook_awq_scale, textbook_gptq, textbook_quip
from tests.bench.whole_models import SHARED, composed, grid, perplexity, quantized, stream
from tests.conftest import SHARED_VARIABLE
from workers.arch import LinearGroup
from workers.methods.linear import quantize_linear
from workers.methods.loss import proxy_loss
from workers.methods.statistics import Statistics
from workers.scaling import BlockScaling
from workers.statistics import GroupStatistics

REPEATS = 2
GPTQ_SIZES, QUIP_SIZES, AWQ_SIZES = (1024, 4096), (1024, 2048), (1024,)
AWQ_TOKENS = 8192
OURS = (("rtn", 64), ("gptq", None), ("gptq", 64), ("awq", 64), ("awq_gptq", 64), ("quip", None), ("hqq", 64))
MODEL = SHARED / "models" / "mini_reference"


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("parts", nargs="*", default=["layers", "models"], help="layers, models")
    arguments.add_argument("--bits", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    print(f"{torch.__version__}, one thread, {_gemm_rate():.0f} GFLOP/s in float32 products of 2048 x 2048")
    if "layers" in given.parts:
        _layers(given.bits)
    if "models" in given.parts:
        _models(given.bits)


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(bits: int) -> None:
    print(f"\n{'one linear':22} {'textbook':>10} {'ours':>10} {'ratio':>7}   loss of ours over the textbook's")
    for size in GPTQ_SIZES:
        _compare(f"GPTQ {size} x {size}", size, "gptq", lambda w, x, h: textbook_gptq(w, h, bits), bits)
    for size in QUIP_SIZES:
        _compare(f"QuIP {size} x {size}", size, "quip", lambda w, x, h: textbook_quip(w, h, bits), bits)
    for size in AWQ_SIZES:
        _compare_search(size, bits)


def _compare(name: str, size: int, method: str, textbook: Callable[..., Tensor], bits: int) -> None:
    """Ours reports both losses too, and the textbook none."""
    weight, inputs = _problem(size, 2 * size)
    hessian = inputs.mT @ inputs / len(inputs)
    conf, scheme = composed([f"method={method}", *grid(bits, None)])
    theirs, expected = _timed(lambda: textbook(weight.clone(), inputs, hessian))
    ours, found = _timed(lambda: quantize_linear(weight, Statistics(hessian), conf, scheme))
    losses = [proxy_loss(weight - quantized, hessian) for quantized in (found.dense, expected)]
    _row(name, theirs, ours, f"{losses[0] / losses[1]:.4f}")


def _compare_search(size: int, bits: int) -> None:
    """A linear inspected by itself; ours sums the Hessian first, which rounding needs anyway."""
    weight, inputs = _problem(size, AWQ_TOKENS)
    block = nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False))
    block[1].weight.data = weight
    group = LinearGroup("second", ("1",), prev_op="0", inspect="1", residual=None)
    scheme = UniformScheme(bits=bits, scale_dtype="float32")

    @torch.no_grad()
    def search() -> Tensor:
        scaling = BlockScaling(block, [group], AwqScale(), scheme, head_dim=1, num_windows=1)
        statistics = GroupStatistics(block, (group,), sample_every=None)
        with scaling.watching(), statistics.watching():
            block[1](inputs)
        ((_, scale, _),) = scaling.search(statistics)
        return scale

    theirs, expected = _timed(lambda: textbook_awq_scale(weight, inputs, bits))
    ours, found = _timed(search)
    same = "the same scale" if torch.allclose(found, expected, rtol=1e-4) else "another scale"
    _row(f"AWQ search {size}, {AWQ_TOKENS} tokens", theirs, ours, same)


def _problem(size: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Weights [size, size], and inputs [tokens, size] whose channels differ tenfold and share directions."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, size, generator=generator) * 0.02
    inputs = torch.randn(num_tokens, size, generator=generator) * (torch.rand(size, generator=generator) + 0.1)
    shared = torch.randn(num_tokens, 32, generator=generator) @ torch.randn(32, size, generator=generator)
    return weight, inputs + shared / 32


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """The least CPU seconds of some repetitions, and what came out."""
    found, seconds = None, math.inf
    for _ in range(REPEATS):
        began = time.process_time()
        found = run()
        seconds = min(seconds, time.process_time() - began)
    return seconds, found


def _row(name: str, theirs: float, ours: float, quality: str) -> None:
    print(f"{name:22} {theirs:8.2f} s {ours:8.2f} s {theirs / ours:7.2f}   {quality}", flush=True)


def _gemm_rate() -> float:
    a = torch.randn(2048, 2048)
    seconds, _ = _timed(lambda: a @ a)
    return 2 * 2048**3 / seconds / 1e9


# --- models ----------------------------------------------------------------------------------------------------------


def _models(bits: int) -> None:
    if not MODEL.is_dir():
        print(f"\nno {MODEL}; set {SHARED_VARIABLE} to measure whole models")
        return
    windows = stream(MODEL / "calibration_windows.npy").numpy()
    print(f"\n{f'mini_reference, {bits} bits':44} {'CPU s':>8} {'perplexity':>11}")
    for name, group_size in OURS:
        label = f"ours {name} {f'g{group_size}' if group_size else 'per row'}"
        made = quantized(MODEL, [f"method={name}", *grid(bits, group_size)], windows)
        print(f"{label:44} {_figures(made.seconds, made.model)}", flush=True)
    for tool in tools.TOOLS:
        print(f"{tool.name:44} {_of_tool(tool, windows, bits)}", flush=True)


def _of_tool(tool: tools.Tool, windows: Any, bits: int) -> str:
    if importlib.util.find_spec(tool.module) is None:
        return "not installed"
    try:
        return _figures(*tool.quantize(MODEL, windows, bits))
    except Exception as error:  # noqa: BLE001 (what does not run here is a row, not the end of the table)
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:150]}"


def _figures(seconds: float, model: nn.Module) -> str:
    return f"{seconds:8.1f} {perplexity(model, stream(MODEL / 'tokens_held.npy')):11.2f}"


if __name__ == "__main__":
    main()
