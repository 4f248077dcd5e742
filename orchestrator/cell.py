"""A cell's identity: what its two keys hash, and a label a person can read.

quantize_key names a checkpoint, evaluate_key a row. What is hashed is kept beside the key, so that a mismatch can be
explained. GPU counts, thread counts, retries and tracking never enter.
"""

import enum
from dataclasses import dataclass
from typing import Any

from conf.schema import CalibrationConf, CellConf, SchemeConf, ShapeConf, SuiteConf
from workers.api import ModelRef, TextRef
from workers.arch import ARCHITECTURES, Architecture
from workers.canonical import plain
from workers.datasets import IMAGES
from workers.methods.registry import PIPELINE_RECIPE, recipes
from workers.task_files import own_conf, task_file_key


class CellStatus(enum.StrEnum):
    """Where a cell stands. The last four are ends; NOT_* are never stored."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class Engine:
    """The engine chosen for a cell before it starts, and why."""

    name: str
    version: str
    reason: str
    dtype: str
    weight_format: str


@dataclass(frozen=True)
class Cell:
    """One point of the grid with everything resolved.

    config holds effective values (device, sequence lengths cut to the model's context); support is null for a cell that
    can run, else NOT_APPLICABLE or NOT_IMPLEMENTED with its reason. payload is what evaluate_key hashes.
    other_lanes: those beside its own in which the sweep asks for this very cell.
    """

    config: CellConf
    model: ModelRef
    shape: ShapeConf
    calibration_text: TextRef
    texts: dict[str, TextRef]
    engine: Engine
    quantize_key: str
    evaluate_key: str
    payload: dict[str, Any]
    label: str
    support: CellStatus | None = None
    support_reason: str = ""
    notes: tuple[str, ...] = ()
    other_lanes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.evaluate_key


def quantize_payload(config: CellConf, model: ModelRef, calibration_text: TextRef) -> dict[str, Any]:
    """What decides a checkpoint's numbers."""
    method = plain(config.method)
    slots = {k: v for k, v in method.items() if k not in ("kind", "name", "category", "published", "published_at")}
    if not config.method.skip:
        del slots["skip"]  # so that the keys of checkpoints older than this field stay
    architecture = ARCHITECTURES.get(model.architecture)
    return {
        "model": {"fingerprint": model.fingerprint, "tokenizer": model.tokenizer},
        "method": slots,
        "scheme": plain(config.scheme),
        "calibration": _calibration_payload(config.calibration, calibration_text, architecture),
        "seed": config.seed,
        "numerics": plain(config.numerics),
        "recipes": {
            **recipes(config.method),
            "pipeline": PIPELINE_RECIPE,
            "architecture": architecture.recipe if architecture else 0,
        },
    }


def evaluate_payload(quantize_key: str, suite: SuiteConf, texts: dict[str, TextRef], engine: Engine) -> dict[str, Any]:
    """What decides a row's numbers, given the checkpoint."""
    return {
        "quantize_key": quantize_key,
        "perplexity": {
            task: {"source": text.source, "fingerprint": texts[task].fingerprint}
            for task, text in suite.perplexity.items()
        },
        "sequence_length": suite.sequence_length,
        "tasks": list(suite.tasks),
        "task_files": texts["tasks"].fingerprint if "tasks" in texts else None,
        "limit": suite.limit,
        "dtype": engine.dtype,
        "weight_format": engine.weight_format,
        "engine": {"name": engine.name, "version": engine.version},
        **_items_payload(suite, texts),
    }


def _items_payload(suite: SuiteConf, texts: dict[str, TextRef]) -> dict[str, Any]:
    """Nothing without items of its own, so that keys stay what they were before there were any."""
    items = {
        task: plain(conf) | {"path": texts[task_file_key(task)].fingerprint}
        for task in suite.tasks
        if (conf := own_conf(suite, task)) is not None
    }
    return {"items": items} if items else {}


def _calibration_payload(conf: CalibrationConf, text: TextRef, architecture: Architecture | None) -> dict[str, Any]:
    has_experts = architecture is not None and any(kind.experts for kind in architecture.kinds)
    return {
        **({"experts": conf.experts} if has_experts else {}),
        "source": text.source,
        "text": text.fingerprint,
        "num_sequences": conf.num_sequences,
        "sequence_length": conf.sequence_length,
        **({"prompt": conf.prompt} if text.source == IMAGES else {}),
    }


def label(config: CellConf, model: ModelRef, assignment: dict[str, str]) -> str:
    """`mini-llama gptq w3 g128 s1`, with every other axis spelled out."""
    parts = [model.name, config.method.name, _scheme_label(config.scheme)]
    if config.lane.published:
        parts.append(config.lane.name)
    if config.seed or "seed" in assignment:
        parts.append(f"s{config.seed}")
    spoken = {"model", "model.repo", "method", "scheme.bits", "scheme.group_size", "lane", "seed"}
    parts += [f"{k.split('.')[-1]}={v}" for k, v in assignment.items() if k not in spoken]
    return " ".join(parts)


def _scheme_label(scheme: SchemeConf) -> str:
    return f"w{scheme.bits}" + (f" g{scheme.group_size}" if scheme.group_size else "")
