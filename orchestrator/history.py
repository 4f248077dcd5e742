"""A cell's attempts in words and times: what status, the report and MLflow say of failed and repeated cells."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from orchestrator.storage import Attempt, CellState
from workers.api import Failure


@dataclass(frozen=True)
class Try:
    """One attempt. outcome: a status, a failure's kind, or `open`; stage: where it ended. seconds: null while open."""

    number: int
    outcome: str
    stage: str
    started: datetime.datetime
    seconds: float | None
    message: str
    log: Path

    @property
    def words(self) -> str:
        """`WORKER_LOST in quantize after 12 s (2026-11-22 14:02:10)`."""
        where = f" in {self.stage}" if self.stage else ""
        return f"{self.outcome}{where} {self.when}"

    @property
    def when(self) -> str:
        """`after 12 s (2026-11-22 14:02:10)`: how long it took, and its beginning."""
        began = f"({self.started:%Y-%m-%d %H:%M:%S})"
        return began if self.seconds is None else f"after {self.seconds:.0f} s {began}"


def history(state: CellState) -> list[Try]:
    """The attempts at a cell, oldest first."""
    return [_try(attempt) for attempt in state.attempts]


def last_failure(state: CellState) -> Failure | None:
    """Why the last attempt failed; null where it did not, or is open."""
    return state.last.result.failure if state.last and state.last.result else None


def started_at(attempt: Attempt) -> float:
    """Seconds since 1970: the driver wrote cell.json when it opened the attempt."""
    return (attempt.directory / "cell.json").stat().st_mtime


def ended_at(attempt: Attempt) -> float:
    """Seconds since 1970; of an attempt that has a result. Never before its start, though a clock was set back."""
    return max((attempt.directory / "result.json").stat().st_mtime, started_at(attempt))


def _try(attempt: Attempt) -> Try:
    started, result = started_at(attempt), attempt.result
    failure = result.failure if result else None
    return Try(
        number=attempt.number,
        outcome=failure.kind.value if failure else result.status if result else "open",
        stage=failure.stage if failure else "",
        started=datetime.datetime.fromtimestamp(started),
        seconds=ended_at(attempt) - started if result else None,
        message=failure.message if failure else "",
        log=attempt.directory / "log.txt",
    )
