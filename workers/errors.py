"""The error tree.

    PrerequisiteError                exit 3, in a worker PREREQUISITE: something outside is missing; the message names
    |                                the command that fixes it
    +-- LockedError                  exit 3: another driver holds the sweep
    CellError(kind)                  one attempt at one cell failed; becomes a Failure, never a traceback for the user
    +-- TransientError               TRANSIENT      hub, data set or network: worth another try
    +-- BadInputError                BAD_INPUT      a file is not what it claims to be
    +-- NumericalError               NUMERICAL      NaN, Inf or an indefinite Hessian, with the layer
    +-- EngineError                  ENGINE         the engine died or refused the checkpoint
    +-- ParityError                  PARITY         engine and manifest disagree on the canary prompts
    +-- NoOpError                    NO_OP          quantization changed nothing

Errors of Python, torch and the operating system are sorted into kinds in one place, `workers/failures.py`.
"""

from typing import ClassVar

from workers.api import FailureKind


class PrerequisiteError(Exception):
    """Something outside the project is missing."""


class LockedError(PrerequisiteError):
    """Another driver is working on the same thing."""


class CellError(Exception):
    """One attempt at a cell failed. `layer` names the module concerned, where there is one."""

    kind: ClassVar[FailureKind]

    def __init__(self, message: str, *, layer: str | None = None) -> None:
        super().__init__(message if layer is None else f"{layer}: {message}")
        self.layer = layer


class TransientError(CellError):
    """The hub, a data set or the network did not answer."""

    kind = FailureKind.TRANSIENT


class BadInputError(CellError):
    """A checkpoint or text is damaged, incomplete or of the wrong kind."""

    kind = FailureKind.BAD_INPUT


class NumericalError(CellError):
    """NaN, Inf, or a Hessian that stays indefinite."""

    kind = FailureKind.NUMERICAL


class EngineError(CellError):
    """The engine died or refused the checkpoint."""

    kind = FailureKind.ENGINE


class ParityError(CellError):
    """The engine's log-probabilities differ from the manifest's beyond tolerance."""

    kind = FailureKind.PARITY


class NoOpError(CellError):
    """Nothing was quantized although the method says so."""

    kind = FailureKind.NO_OP
