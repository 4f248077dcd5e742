"""Which engine scores a cell, decided before the cell starts from a table of what each engine can do.

The facts hold for vLLM 0.32 and Transformers 5.19, as pinned in locks/. Pure; imports neither.
"""

import difflib
from dataclasses import dataclass

from conf.errors import ConfigError

ENGINES = ("vllm", "transformers")
DTYPES = ("float32", "bfloat16", "float16")
WEIGHT_FORMATS = ("source", "dense", "packed")

# Head sizes of vLLM's CPU attention: with another, the engine starts and its first forward fails. On a GPU it picks one
# of several attention backends and no list is kept here.
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


@dataclass(frozen=True)
class Capability:
    """Why an engine cannot score an architecture; null where it can."""

    vllm: str | None = None
    transformers: str | None = None


SEEING = ("llava", "vila")  # architectures that images can be shown to
CAPABILITIES: dict[str, Capability] = {
    "llama": Capability(),
    "mixtral": Capability(),
    "deepseek_moe": Capability(),
    "deepseek_v2": Capability(),
    "mamba": Capability(),
    "mamba2": Capability(),
    "llava": Capability(),
    "vila": Capability(),
}


@dataclass(frozen=True)
class EngineChoice:
    """engine: vllm | transformers. reason: a sentence for the row."""

    engine: str
    reason: str


def choose_engine(
    requested: str,
    architecture: str,
    head_dim: int | None,
    dtype: str,
    weight_format: str,
    device: str,
    images: bool = False,
) -> EngineChoice:
    """The engine of a cell. requested: auto | vllm | transformers; auto takes vLLM where it can.

    head_dim: columns of an attention head, null for a model without attention. weight_format: what the engine will
    load (source | dense | packed). device: cpu | cuda. images: whether a task shows some. Raises ConfigError when the
    requested engine cannot, or none can.
    """
    require("engine", requested, ("auto", *ENGINES))
    require("suite.dtype", dtype, DTYPES)
    require("weight format", weight_format, WEIGHT_FORMATS)
    require("device", device, ("cpu", "cuda"))
    require("model.architecture", architecture, tuple(CAPABILITIES))
    if weight_format == "packed":
        raise ConfigError("no engine serves packed weights yet; they are multiplied out for it (weight format dense)")
    if images and architecture not in SEEING:
        raise ConfigError(f"suite.tasks: some show images, and {architecture} sees none; leave them out for this model")
    refusals = {engine: _refusal(engine, architecture, head_dim, device) for engine in ENGINES}
    if requested != "auto":
        if refusals[requested] is None:
            return EngineChoice(requested, f"engine={requested} was asked for")
        able = [engine for engine in ENGINES if refusals[engine] is None]
        advice = f"; use engine={able[0]}" if able else ""
        raise ConfigError(f"engine={requested}: {refusals[requested]}{advice}")
    if refusals["vllm"] is None:
        return EngineChoice("vllm", f"vLLM scores {architecture} in {dtype} on {device}")
    if refusals["transformers"] is None:
        return EngineChoice("transformers", str(refusals["vllm"]))
    raise ConfigError(f"no engine can score this model: {refusals['vllm']}; {refusals['transformers']}")


def _refusal(engine: str, architecture: str, head_dim: int | None, device: str) -> str | None:
    """Why `engine` cannot, or null."""
    capability = CAPABILITIES[architecture]
    if engine == "transformers":
        return capability.transformers
    if capability.vllm is None and device == "cpu" and head_dim is not None and head_dim not in CPU_HEAD_DIMS:
        sizes = ", ".join(map(str, CPU_HEAD_DIMS))
        return f"vLLM's CPU attention supports head sizes {sizes}; this model has {head_dim}"
    return capability.vllm


def require(key: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise ConfigError, with the nearest and all valid values, when `value` is none of them."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{key}={value}: unknown. {hint}Valid: {', '.join(valid)}")
