"""The command line, with what the scheduler is told and what it reports written to a file, one JSON line each.

python recorded_sweep.py <file> sweep ...
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import cli
from orchestrator.scheduler import RayScheduler


def record(file: Path, **entry: Any) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"seconds": time.monotonic(), **entry}) + "\n")


def recorded(file: Path, action: str) -> Callable[..., Any]:
    """A method of the scheduler that says what it was called with."""
    method = getattr(RayScheduler, action)
    what: Any = {
        "start_quantize": lambda key, request, placement, node: {"cell": key, "num_gpus": placement.num_gpus},
        "start_host": lambda host, engine, placement, node: {"host": host, "num_gpus": placement.num_gpus},
        "start_evaluate": lambda key, request, host: {"cell": key, "host": host},
        "stop_host": lambda host: {"host": host},
    }[action]

    @functools.wraps(method)
    def call(self: RayScheduler, *arguments: Any) -> Any:
        record(file, action=action, **what(*arguments))
        return method(self, *arguments)

    return call


def recorded_wait(file: Path) -> Callable[..., Any]:
    wait = RayScheduler.wait

    def call(self: RayScheduler, timeout_seconds: float) -> Any:
        record(file, action="wait")
        ends = wait(self, timeout_seconds)
        for end in ends:
            record(file, action=type(end).__name__, cell=end.key, failed=end.failure is not None)
        return ends

    return call


def main() -> int:
    file = Path(sys.argv[1])
    for action in ("start_quantize", "start_host", "start_evaluate", "stop_host"):
        setattr(RayScheduler, action, recorded(file, action))
    setattr(RayScheduler, "wait", recorded_wait(file))  # noqa: B010 (a method is replaced)
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
