"""From an error to its row in the failure table: kind, what happened and where, layer, traceback.

Errors of ours say what next themselves. Those of Python, torch, other libraries and the operating system are sorted
here, by the first in their chain of causes that has a kind; what to do about a kind the driver says
(orchestrator/next_step.py), and here only what this process alone knows.
"""

import errno
import os
import traceback

import kernels
from workers.api import Failure, FailureKind
from workers.errors import CellError, EngineError, PrerequisiteError
from workers.hub import causes, is_outage, is_refusal

GPU_MEMORY_WORDS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
HOST_MEMORY_WORDS = ("can't allocate memory", "Cannot allocate memory")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
STORAGE_LOST_ERRORS = (errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)
# What an engine's failure may really be. Not TRANSIENT: broken connections are what a dead engine leaves behind.
BEHIND_AN_ENGINE = (FailureKind.OUT_OF_MEMORY, FailureKind.CUDA, FailureKind.WORKER_LOST, FailureKind.DISK_FULL)


def classify(stage: str, error: BaseException) -> Failure:
    """The Failure of a stage that raised. Equal errors of several cells have equal messages."""
    kind = _kind(error)
    more = _more(kind, error)
    return Failure(
        stage=stage,
        kind=kind,
        message=_message(error) if more is None else f"{_message(error).rstrip('. ')}. {more}",
        layer=getattr(error, "layer", None),
        traceback="".join(traceback.format_exception(error)),
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether this error, or one it was raised from, says that there is no room left."""
    return any(_says_disk_full(cause) for cause in causes(error))


def _kind(error: BaseException) -> FailureKind:
    if isinstance(error, CellError) and not isinstance(error, EngineError):
        return error.kind
    kinds = [kind for cause in causes(error) if (kind := _kind_alone(cause)) is not None]
    if isinstance(error, EngineError):
        return next((kind for kind in kinds if kind in BEHIND_AN_ENGINE), error.kind)
    if FailureKind.PREREQUISITE in kinds:  # a refusal stays one where a library tells it as a lost connection
        return FailureKind.PREREQUISITE
    return kinds[0] if kinds else FailureKind.INTERNAL


def _kind_alone(error: BaseException) -> FailureKind | None:
    """What one error of a chain says by itself; null where that is nothing."""
    name, text = type(error).__name__, str(error)
    code = error.errno if isinstance(error, OSError) else None
    if name == "OutOfMemoryError" or any(words in text for words in GPU_MEMORY_WORDS):
        return FailureKind.OUT_OF_MEMORY
    if name == "AcceleratorError" or "CUDA error" in text:
        return FailureKind.CUDA
    if isinstance(error, MemoryError) or code == errno.ENOMEM or any(words in text for words in HOST_MEMORY_WORDS):
        return FailureKind.WORKER_LOST
    if _says_disk_full(error):
        return FailureKind.DISK_FULL
    if isinstance(error, CellError):
        return error.kind
    if isinstance(error, PrerequisiteError) or is_refusal(error):
        return FailureKind.PREREQUISITE
    if code in STORAGE_LOST_ERRORS:
        return FailureKind.WORKER_LOST
    return FailureKind.TRANSIENT if is_outage(error) else None


def _says_disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in DISK_ERRORS or "No space left on device" in str(error)


def _message(error: BaseException) -> str:
    """An error of ours is its words. To others their type is added, the node, and what the first cause says."""
    text = " ".join(str(error).split())
    if isinstance(error, CellError | PrerequisiteError) and text:
        return text
    words = f"{type(error).__name__}: {text}" if text else type(error).__name__
    *_, first = causes(error)
    if first is not error and (reason := " ".join(str(first).split())) not in words:
        words += f"; caused by {type(first).__name__}: {reason}"
    return f"{words} (on {os.uname().nodename})"


def _more(kind: FailureKind, error: BaseException) -> str | None:
    """What this process alone knows of such a failure, or null."""
    match kind:
        case FailureKind.CUDA:
            versions = ", ".join(f"{operation}: {version}" for operation, version in kernels.status().items())
            return f"Kernels here: {versions}"
        case FailureKind.ENGINE | FailureKind.PARITY:
            return "The checkpoint is kept, `resubmit` goes on with its evaluation; log.txt has the engine's own words"
        case FailureKind.PREREQUISITE if not isinstance(error, PrerequisiteError):
            return "Where access is what is missing, give every node a token: cluster.secrets.HF_TOKEN=<file>"
        case FailureKind.DISK_FULL:
            return "What this stage had begun to write is removed"
    return None
