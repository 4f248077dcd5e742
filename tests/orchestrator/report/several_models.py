"""Cells made by hand of models that differ in structure and modality, with known losses."""

import math
from typing import Any

import pandas as pd

from orchestrator.report.columns import normalise
from tests.orchestrator.report.conftest import make_cell

MODELS = {  # model -> (structure, modality, 16-bit perplexity)
    "mini-llama": ("dense MHA", "text", 16.0),
    "mini-gqa": ("dense GQA", "text", 20.0),
    "mini-mixtral": ("MoE", "text", 10.0),
    "mini-mamba": ("state space", "text", 30.0),
    "mini-llava": ("dense MHA", "vision-language", 18.0),
}
LOST = {  # method -> bits -> nats lost, by model in the order above
    "rtn": {2: (0.9, 1.0, 1.1, 3.0, 0.8), 4: (0.04, 0.04, 0.04, 0.04, 0.04)},
    "gptq": {2: (0.2, 0.3, 0.1, 0.6, 0.2), 4: (0.02, 0.02, 0.02, 0.02, 0.02)},
    "quip": {2: (0.1, 0.1, 0.4, 0.2, 0.1), 4: (0.01, 0.01, 0.03, 0.01, 0.01)},
    "awq": {2: (2.5, 2.6, 2.4, 2.7, 2.5), 4: (0.03, 0.03, 0.01, 0.03, 0.03)},
}
CATEGORIES = {"rtn": "baseline", "gptq": "compensation", "quip": "rotation", "awq": "salience"}


def of_model(model: str, method: str, bits: int, lost: float | None, **columns: Any) -> dict[str, Any]:
    """A cell that lost so many nats; one without a value failed."""
    structure, modality, perplexity = MODELS[model]
    facts = {"structure": structure, "modality": modality, "category": CATEGORIES.get(method, "baseline")}
    value = None if lost is None else perplexity * math.exp(lost)
    row: dict[str, Any] = make_cell(model, method, bits, columns.pop("seed", 0), value, **{**facts, **columns})
    return row


def rows() -> list[dict[str, Any]]:
    """One seed of everything above; QuIP failed on mini-mamba at 2 bits and was never asked for on mini-llava."""
    found = [of_model(model, "none", 16, 0.0) for model in MODELS]
    for method, by_bits in LOST.items():
        for bits, lost in by_bits.items():
            for model, nats in zip(MODELS, lost, strict=True):
                if (method, model) == ("quip", "mini-llava"):
                    continue
                failed = (method, model, bits) == ("quip", "mini-mamba", 2)
                more = {"failure_kind": "NUMERICAL"} if failed else {}
                found.append(of_model(model, method, bits, None if failed else nats, **more))
    return found


def cells(*more: dict[str, Any]) -> pd.DataFrame:
    """`rows` and more, normalised."""
    return normalise(pd.DataFrame([*rows(), *more]))
