"""The contract between the driver and the workers: plain frozen data, no torch.

Everything here is JSON once passed through `to_json`; `from_json` reads it back. Files written with it are the truth
from which tables, MLflow and resumption are rebuilt.
"""

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from conf.schema import CalibrationConf, MethodConf, NumericsConf, SchemeConf, SuiteConf


class FailureKind(enum.StrEnum):
    """Why an attempt failed; the rows of the failure table."""

    TRANSIENT = "TRANSIENT"
    PREREQUISITE = "PREREQUISITE"  # something outside is missing on the node: a secret, leave to read a repository
    BAD_INPUT = "BAD_INPUT"
    NUMERICAL = "NUMERICAL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    WORKER_LOST = "WORKER_LOST"
    CUDA = "CUDA"
    ENGINE = "ENGINE"
    PARITY = "PARITY"
    NO_OP = "NO_OP"
    DISK_FULL = "DISK_FULL"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"  # a defect of ours; the traceback is in the attempt


@dataclass(frozen=True)
class ModelRef:
    """A resolved checkpoint.

    directory is set for a local model; otherwise (repo, revision) names a commit on the hub. fingerprint is what enters
    keys: the content hash of the directory, or repo@commit.
    """

    name: str
    repo: str
    architecture: str
    fingerprint: str
    directory: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class TextRef:
    """A resolved text.

    location is a local file, or null for the hub's copy; fingerprint is its content hash, or the commit.
    """

    source: str
    location: str | None
    fingerprint: str


@dataclass(frozen=True)
class QuantizeRequest:
    """Everything a worker needs to make one checkpoint; evaluate_key names the cell it is made for first.

    secrets: environment variable -> file on the node that holds its value. statistics_gib: what the storage may hold of
    statistics that cells share.
    """

    evaluate_key: str
    quantize_key: str
    model: ModelRef
    method: MethodConf
    scheme: SchemeConf
    calibration: CalibrationConf
    calibration_text: TextRef
    seed: int
    numerics: NumericsConf
    storage: str
    attempt_directory: str
    secrets: dict[str, str] = field(default_factory=dict)
    statistics_gib: float = 0.0


@dataclass(frozen=True)
class LayerReport:
    """What one linear really got.

    proxy_loss is tr((W-Q) H (W-Q)^T) on the original W and the undamped mean-over-tokens H; null where the method needs
    no data. degraded says what differs from the label, or is null. shared_statistics: whether another cell had left its
    statistics in the storage, so that nobody has waited for them here.
    """

    block: int
    linear: str
    applied: str
    bits: int
    group_size: int | None
    bits_per_weight: float
    num_weights: int
    num_tokens: int
    damping: float | None
    damping_retries: int
    proxy_loss: float | None
    relative_proxy_loss: float | None
    unchanged: bool
    degraded: str | None
    seconds: float
    shared_statistics: bool = False


@dataclass(frozen=True)
class Canary:
    """Eight prompts that travel with a checkpoint.

    tokens: [prompts][length] token ids. reference, quantized: [prompts][length - 1] natural-log probabilities of the
    next token, float32 compute, before and after quantization.
    """

    tokens: list[list[int]]
    reference: list[list[float]]
    quantized: list[list[float]]


@dataclass(frozen=True)
class Manifest:
    """Written last into a checkpoint; its presence is the commit. files: name -> sha256."""

    quantize_key: str
    source: str
    weight_format: str  # source (16-bit baseline: the model's own files) | packed
    calibration_hash: str
    calibration_num_tokens: int
    bits_per_weight: float
    checkpoint_bytes: int
    canary: Canary
    layer_reports: list[LayerReport]
    files: dict[str, str]
    seconds: float
    peak_memory_gib: float
    versions: dict[str, str]


@dataclass(frozen=True)
class EvaluateRequest:
    """Everything an engine host needs to score one cell. secrets: as for quantizing."""

    evaluate_key: str
    quantize_key: str
    model: ModelRef
    suite: SuiteConf
    texts: dict[str, TextRef]
    engine: str
    dtype: str
    storage: str
    attempt_directory: str
    secrets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """One number. name is <task>.<metric>; stderr in the unit of value, null where it is not defined."""

    name: str
    value: float
    stderr: float | None
    num_examples: int
    unit: str


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a result."""

    stage: str  # quantize | evaluate
    kind: FailureKind
    message: str
    layer: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class QuantizeResult:
    """What the quantize stage hands back: the checkpoint's directory, not its tensors."""

    checkpoint: str
    reused: bool
    seconds: float
    peak_memory_gib: float
    worker_start_seconds: float


@dataclass(frozen=True)
class EvaluateResult:
    """What the evaluate stage hands back. swap: how the weights got into the engine (fresh | reloaded | rebuilt)."""

    metrics: list[Metric]
    engine_version: str
    swap: str
    canary_difference: float
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_gib: float = 0.0


@dataclass(frozen=True)
class AttemptResult:
    """attempts/<run>/result.json: the end of one attempt, whichever stage it ended in."""

    evaluate_key: str
    quantize_key: str
    status: str  # SUCCEEDED | FAILED | CANCELLED
    failure: Failure | None = None
    quantize: QuantizeResult | None = None
    evaluate: EvaluateResult | None = None


T = TypeVar("T")


def to_json(value: Any) -> str:
    """A dataclass instance as indented JSON."""
    return json.dumps(dataclasses.asdict(value), indent=1, allow_nan=True, ensure_ascii=False) + "\n"


def from_json(cls: type[T], text: str) -> T:
    """Read what `to_json` wrote. Raises ValueError when the text is not that."""
    annotation: Any = cls
    read = _reader(annotation)
    assert read is not None
    return typing.cast(T, read(json.loads(text)))


@functools.cache
def _reader(annotation: Any) -> Callable[[Any], Any] | None:
    """What makes a value of this type out of JSON's; null where JSON's own value is left as it is.

    Worked out once for a type: a sweep has thousands of results, and a manifest hundreds of reports.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [a for a in arguments if a is not type(None)]
        read = _reader(inner)
        return None if read is None else functools.partial(_optional, read)
    if origin is list:
        return functools.partial(_list, _reader(arguments[0]))
    if origin is dict:
        return functools.partial(_dict, _reader(arguments[1]))
    if dataclasses.is_dataclass(annotation):
        readers = {name: read for name, hint in typing.get_type_hints(annotation).items() if (read := _reader(hint))}
        return functools.partial(_dataclass, annotation, readers)
    return annotation if isinstance(annotation, type) and issubclass(annotation, enum.Enum) else None


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _list(read: Callable[[Any], Any] | None, value: Any) -> list[Any]:
    return list(value) if read is None else [read(v) for v in value]


def _dict(read: Callable[[Any], Any] | None, value: Any) -> dict[str, Any]:
    return dict(value) if read is None else {k: read(v) for k, v in value.items()}


def _dataclass(cls: Any, readers: dict[str, Callable[[Any], Any]], value: Any) -> Any:
    try:
        return cls(**(value | {name: read(value[name]) for name, read in readers.items() if name in value}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a {cls}: {error}") from error
