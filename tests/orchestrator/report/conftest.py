"""Cells made by hand: two models, three methods, three widths, two seeds."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from orchestrator.report.columns import COLUMNS, normalise

MakeCell = Callable[..., dict[str, Any]]

PERPLEXITIES = {  # model -> method -> bits -> perplexity of the first seed
    "mini-llama": {
        "none": {16: 20.9},
        "rtn": {2: 56.74, 3: 23.7, 4: 21.43},
        "gptq": {2: 29.5, 3: 21.84, 4: 21.2},
    },
    "mini-mamba": {
        "none": {16: 34.2},
        "rtn": {2: 41234.7, 3: 38.6, 4: 35.1},
        "gptq": {2: 48.3, 3: 35.5, 4: 34.5},
    },
}
CATEGORIES = {"none": "baseline", "rtn": "baseline", "gptq": "compensation"}


def make_cell(
    model: str, method: str, bits: int, seed: int = 0, perplexity: float | None = None, **columns: Any
) -> Any:
    """One row of cells.csv: SUCCEEDED with `perplexity`, or empty of results when that is None."""
    label = columns.pop("label", f"{model} {method} {bits}-bit seed={seed}")
    row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan)
    row |= {
        "cell_key": hashlib.sha256(label.encode()).hexdigest(),
        "label": label,
        "model": model,
        "architecture": model.removeprefix("mini-"),
        "structure": "dense MHA",
        "modality": "text",
        "suite": "mini",
        "method": method,
        "category": CATEGORIES.get(method, "combination"),
        "bits": bits,
        "seed": seed,
        "lane": "unified",
        "status": "SUCCEEDED" if perplexity is not None else "FAILED",
        "metric.held_out.perplexity": math.nan if perplexity is None else perplexity,
    }
    if perplexity is not None:
        row |= {
            "calibration_hash": math.nan if method == "none" else f"{seed:012d}abc",
            "attempt": 1,
            "engine": "vllm",
            "engine_reason": "listed in the capability table",
            "weight_format": "source" if method == "none" else "packed",
            "bits_per_weight": 16.0 if method == "none" else bits + 0.25,
            "checkpoint_bytes": 3 * 2**20,
            "quantize_seconds": 12.5,
            "shared_statistics": 0,
            "evaluate_seconds": 4.0,
            "peak_memory_gib": 0.5,
            "metric.mini_continuation.acc": 0.6,
            "metric.mini_continuation.acc_stderr": 0.02,
        }
    return row | columns


def make_sweep(seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    """All cells of PERPLEXITIES; each further seed adds one percent. One cell is degraded, one place failed."""
    rows = []
    for model, methods in PERPLEXITIES.items():
        for method, by_bits in methods.items():
            for bits, perplexity in by_bits.items():
                for seed in seeds if method != "none" else seeds[:1]:
                    value: float | None = perplexity * (1 + 0.01 * seed)
                    extra: dict[str, Any] = {}
                    if (model, method, bits) == ("mini-mamba", "gptq", 2):
                        value, extra = None, {"failure_kind": "NUMERICAL", "failure_message": "layer 3: <H> | not PD"}
                    if (model, method, bits) == ("mini-mamba", "gptq", 3):
                        extra = {"degraded": "block 1 in_proj: damping 0.1 instead of 0.01"}
                    rows.append(make_cell(model, method, bits, seed, value, **extra))
    return pd.DataFrame(rows)


@pytest.fixture
def cell() -> MakeCell:
    """`make_cell`."""
    return make_cell


@pytest.fixture
def sweep() -> pd.DataFrame:
    """Two seeds, as it would be written to cells.csv."""
    return make_sweep()


@pytest.fixture
def clean(sweep: pd.DataFrame) -> pd.DataFrame:
    """`sweep`, normalised."""
    return normalise(sweep)


@pytest.fixture
def one_seed() -> pd.DataFrame:
    """The same sweep with one seed, normalised."""
    return normalise(make_sweep(seeds=(0,)))
