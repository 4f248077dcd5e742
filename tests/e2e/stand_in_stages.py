"""Our driver on a real cluster, with stages that only say where they ran: node, GPUs, from when to when.

python stand_in_stages.py <address> <directory>: writes <directory>/evaluations, one JSON line each. One cell needs four
GPUs and becomes ready only when eight that need one each have taken all there are; the four after those wait for it.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import ray
from rich.console import Console

from conf.schema import ClusterConf
from orchestrator import scheduler as scheduling
from orchestrator.driver import Driver
from orchestrator.events import Job
from orchestrator.placement import Placement
from orchestrator.progress import SweepProgress
from orchestrator.storage import Storage
from tests.orchestrator.hand_made import make_cell, make_config
from workers.api import AttemptResult, EvaluateRequest, EvaluateResult, Failure, Metric, QuantizeRequest, to_json
from workers.files import create

GANG, EARLY, LATE = "gang", "early", "late"
ROLES = [GANG] + 8 * [EARLY] + 4 * [LATE]
ON_ONE_GPU, ON_FOUR = Placement(1, 0, 1.0), Placement(4, 0, 4.0, tensor_parallel_size=4)
QUANTIZE = Placement(0, 1, 0.5)
SECONDS = {GANG: 1.0, EARLY: 5.0, LATE: 1.0}  # the driver hears of the gang's checkpoint before the early ones end
PATIENCE_SECONDS = 200.0  # a schedule that does not bring about what a stage waits for fails the test, not hangs it


def wait_for(directory: Path, role: str, count: int) -> None:
    """Until so many cells of this role are being scored, or have been."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list(directory.glob(f"began-{role}-*"))) < count and time.monotonic() < deadline:
        time.sleep(0.1)


def quantize(request: QuantizeRequest) -> Failure | None:
    """In place of the quantize task."""
    if ROLES[request.seed] != EARLY:
        wait_for(Path(request.storage), EARLY, 8)
    return None


class Host:
    """In place of the engine host's actor."""

    def __init__(self, engine: str, tensor_parallel_size: int) -> None:
        self._size = tensor_parallel_size

    def evaluate(self, request: EvaluateRequest) -> Failure | None:
        role, storage = request.engine, Path(request.storage)
        began = time.time()
        (storage / f"began-{role}-{request.evaluate_key}").touch()
        awaited, count = {EARLY: (EARLY, 8), LATE: (GANG, 1), GANG: (LATE, 4)}[role]
        wait_for(storage, awaited, count)
        time.sleep(SECONDS[role])
        here = ray.get_runtime_context()
        entry = {
            "role": role,
            "node": here.get_node_id(),
            "gpus": here.get_accelerator_ids()["GPU"],
            "tensor_parallel_size": self._size,
            "began": began,
            "ended": time.time(),
        }
        with (storage / "evaluations").open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
        scored = EvaluateResult([Metric("t.perplexity", 7.5, None, 8, "1")], "v", "fresh", 0.0)
        result = AttemptResult(request.evaluate_key, request.quantize_key, "SUCCEEDED", None, None, scored)
        create(Path(request.attempt_directory) / "result.json", to_json(result))
        return None


def main(address: str, directory: Path) -> None:
    """Drive the cells, every one with an engine host of its own; the engine's name says the role."""
    scheduling._quantize, scheduling._Host = quantize, Host  # type: ignore[assignment, misc]
    cells = []
    for seed, role in enumerate(ROLES):
        cell = make_cell(dataclasses.replace(make_config(), seed=seed))
        cells.append(dataclasses.replace(cell, engine=dataclasses.replace(cell.engine, name=role)))
    jobs = [_job(cell.key, cell.quantize_key, cell.engine.name) for cell in cells]
    storage = Storage(directory)
    cluster = ClusterConf(name="ray", address=address, idle_seconds=0.0)
    with storage.driving("gang"), SweepProgress(Console(), len(cells), 0.0) as progress:
        scheduler = scheduling.RayScheduler(cluster)
        try:
            Driver(cells, jobs, storage.states(cells), storage, scheduler, progress, cluster).run()
        finally:
            scheduler.close()


def _job(key: str, quantize_key: str, role: str) -> Job:
    evaluate = ON_FOUR if role == GANG else ON_ONE_GPU
    return Job(key, quantize_key, key, (QUANTIZE,), (evaluate,), 1.0, 1.0, False, False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
