"""Quantize a whole model by one of our methods and score what came out: what the benchmarks of methods share.

The checkpoint is scored in its dense form by Transformers, in float32. Scales are float32 too, as other tools keep them
for a float32 model.
"""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conf import register
from conf.schema import MethodConf, UniformScheme
from tests.bench import tools
from tests.conftest import SHARED_VARIABLE
from tests.workers.tiny_requests import request_for
from workers.export import write_dense
from workers.layout import checkpoint_directory
from workers.pipeline import quantize

SHARED = Path(os.environ.get(SHARED_VARIABLE, Path(__file__).resolve().parents[3] / "shared"))
WINDOW_TOKENS, NUM_WINDOWS = 256, 128


@dataclass(frozen=True)
class Quantized:
    """seconds: CPU time of quantizing. bits_per_weight: with scales and all else that is stored for the linears."""

    model: nn.Module
    seconds: float
    bits_per_weight: float


def composed(overrides: Sequence[str]) -> tuple[MethodConf, Any]:
    """Method and scheme of a line of overrides."""
    with register.hydra_context():
        root = register.compose(list(overrides)).root
    if isinstance(root.scheme, UniformScheme):
        root.scheme.scale_dtype = "float32"
    return root.method, root.scheme


def grid(bits: int, group_size: int | None) -> list[str]:
    """The overrides of a scheme; null: per row, or what the method's own scheme has."""
    return [f"scheme.bits={bits}", *([] if group_size is None else [f"scheme.group_size={group_size}"])]


def quantized(directory: Path, overrides: Sequence[str], windows: Any, seed: int = 0) -> Quantized:
    """windows: token ids int64 [n, L]."""
    method, scheme = composed(overrides)
    with tempfile.TemporaryDirectory() as temporary:
        storage = Path(temporary)
        request = request_for(directory, storage, "rtn", windows=windows)
        request = replace(request, method=method, scheme=scheme, seed=seed)
        began = time.process_time()
        manifest = quantize(request)
        seconds = time.process_time() - began
        assert manifest is not None
        write_dense(checkpoint_directory(storage, request.quantize_key), storage / "dense", "float32")
        return Quantized(tools.load(storage / "dense"), seconds, manifest.bits_per_weight)


def windows_at_random(tokens: Tensor, seed: int) -> Any:
    """Calibration [NUM_WINDOWS, WINDOW_TOKENS] int64 from a stream of tokens."""
    starts = torch.randint(
        0, len(tokens) - WINDOW_TOKENS, (NUM_WINDOWS,), generator=torch.Generator().manual_seed(seed)
    )
    return torch.stack([tokens[start : start + WINDOW_TOKENS] for start in starts.tolist()]).numpy()


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Over all whole windows of a stream of tokens."""
    losses = []
    for batch in tokens[: len(tokens) // WINDOW_TOKENS * WINDOW_TOKENS].reshape(-1, WINDOW_TOKENS).split(8):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
    return math.exp(float(torch.cat(losses).mean(dtype=torch.float64)))


def stream(path: Path) -> Tensor:
    """A file of token ids as int64 [n]."""
    return torch.from_numpy(np.load(path).astype(np.int64))
