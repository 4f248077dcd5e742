"""How well the queue keeps 64 GPUs busy, and what driving costs.

First the schedule alone on a simulated clock: 1,000 cells of mixed sizes on eight nodes of eight GPUs, against two
plain queues in the same run; stages take other times than estimated. Then real Ray: cells that only sleep, through the
real driver and RayScheduler, on one node with 64 logical GPUs. Run as a script from the repository's root; an argument
is the number of cells for Ray, 0 for none. It prints; nothing is asserted.
"""

import heapq
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from conf.schema import ClusterConf, NodeConf
from orchestrator import scheduler as scheduling
from orchestrator.capacity import Capacity
from orchestrator.driver import Driver
from orchestrator.events import (
    EvaluateEnded,
    Event,
    Job,
    Node,
    NodesChanged,
    QuantizeEnded,
    StartEvaluate,
    StartHost,
    StartQuantize,
    Tick,
)
from orchestrator.placement import Placement
from orchestrator.progress import SweepProgress
from orchestrator.schedule import Schedule
from orchestrator.storage import Storage
from tests.orchestrator.hand_made import make_cell, make_config
from workers.api import AttemptResult, EvaluateRequest, EvaluateResult, Failure, Metric, QuantizeRequest, to_json
from workers.files import create

NUM_CELLS = 1000
NUM_GPUS = 64
NODES = tuple(Node(f"n{i}", 8, 64, 512.0) for i in range(8))
ENGINE_START_SECONDS = 60.0
IDLE_SECONDS = 30.0
# GPUs to quantize on and to serve on, and the mean minutes of both, of five sizes of model
MODELS = ((1, 1, 10, 4), (1, 1, 20, 8), (1, 2, 25, 10), (2, 4, 45, 15), (2, 8, 50, 20))
RAY_SECONDS = 4.0  # of each sleeping stage
RAY_GPUS = 8  # of each sleeping stage: as many processes at once as a small machine can hold


def main() -> None:
    """Print one table for each part."""
    jobs = grid()
    queues = {"ours": OurQueue, "strict FIFO": Fifo, "first fit": FirstFit}
    columns = [outcome(name, queue, jobs) for name, queue in queues.items()]
    show("1,000 cells on 8 nodes of 8 GPUs, simulated", columns)
    num_cells = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    if num_cells:
        show(f"{num_cells} cells that sleep, on Ray with {NUM_GPUS} logical GPUs", [on_ray(num_cells)])


def show(title: str, columns: Sequence[dict[str, str]]) -> None:
    """Names on the left, one column of values for each dictionary."""
    print(f"\n{title}")
    for name in columns[0]:
        print(f"  {name:44}" + "".join(f"{column[name]:>14}" for column in columns))


# --- the schedule alone ----------------------------------------------------------------------------------------------


def placement(num_gpus: int) -> Placement:
    return Placement(num_gpus, 8 * num_gpus, 60.0 * num_gpus, num_gpus)


def grid() -> list[Job]:
    """Ten models, a hundred cells each, one of them the baseline; stages from 1 to 60 minutes."""
    chance = random.Random(0)
    jobs = []
    for i in range(NUM_CELLS):
        model = i % 10
        quantize_gpus, evaluate_gpus, quantize_minutes, evaluate_minutes = MODELS[model % len(MODELS)]
        quantize, evaluate = (
            60.0 * min(60.0, max(1.0, chance.lognormvariate(0.0, 0.5) * minutes))
            for minutes in (quantize_minutes, evaluate_minutes)
        )
        jobs.append(
            Job(
                key=f"cell-{i}",
                quantize_key=f"checkpoint-{i}",
                host_key=f"model-{model}",
                quantize=(placement(quantize_gpus),),
                evaluate=(placement(evaluate_gpus),),
                quantize_seconds=60.0 if i < 10 else quantize,
                evaluate_seconds=evaluate,
                is_baseline=i < 10,
                checkpoint_ready=False,
            )
        )
    return jobs


def true_seconds(job: Job, stage: str) -> float:
    """Estimates are right within a factor of two, nearly always."""
    estimated = job.quantize_seconds if stage == "quantize" else job.evaluate_seconds
    return estimated * random.Random(f"{job.key} {stage}").lognormvariate(0.0, 0.3)


class Queue:
    """What starts when, on a simulated clock. Subclasses say so in `dispatch`."""

    def __init__(self, jobs: list[Job]) -> None:
        self.now = 0.0
        self.num_events = 0
        self.work_gpu_seconds = 0.0
        self.engine_gpu_seconds = 0.0
        self.num_engines = 0
        self.jobs = {job.key: job for job in jobs}
        self._ends: list[tuple[float, str, str]] = []  # when, stage, cell

    def start(self, key: str, stage: str, *, fresh_engine: bool) -> None:
        """A stage begins now; a fresh engine has to start first."""
        job = self.jobs[key]
        num_gpus = (job.quantize if stage == "quantize" else job.evaluate)[0].num_gpus
        seconds = true_seconds(job, stage)
        self.work_gpu_seconds += seconds * num_gpus
        if fresh_engine:
            self.num_engines += 1
            self.engine_gpu_seconds += ENGINE_START_SECONDS * num_gpus
            seconds += ENGINE_START_SECONDS
        heapq.heappush(self._ends, (self.now + seconds, stage, key))

    def run(self) -> None:
        """Until everything has ended."""
        self.begin()
        while self._ends:
            self.now, stage, key = heapq.heappop(self._ends)
            self.end(stage, key)

    def begin(self) -> None:
        raise NotImplementedError

    def end(self, stage: str, key: str) -> None:
        raise NotImplementedError


class OurQueue(Queue):
    """The project's schedule."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__(jobs)
        self._schedule = Schedule(jobs, idle_seconds=IDLE_SECONDS)
        self._hosts: dict[str, str] = {}  # cell -> its host

    def begin(self) -> None:
        self._tell(Tick(0.0), NodesChanged(NODES))

    def end(self, stage: str, key: str) -> None:
        end = QuantizeEnded(key, None) if stage == "quantize" else EvaluateEnded(key, self._hosts[key], None)
        self._tell(Tick(self.now), end)

    def _tell(self, *events: Event) -> None:
        fresh: set[str] = set()
        for event in events:
            self.num_events += 1
            for action in self._schedule.handle(event):
                match action:
                    case StartQuantize(key):
                        self.start(key, "quantize", fresh_engine=False)
                    case StartHost(host_id):
                        fresh.add(host_id)
                    case StartEvaluate(key, host_id):
                        self._hosts[key] = host_id
                        self.start(key, "evaluate", fresh_engine=host_id in fresh)
                        fresh.discard(host_id)


class FirstFit(Queue):
    """The grid's order; whatever fits somewhere starts, on the first node, with an engine of its own for each score."""

    head_blocks = False

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__(jobs)
        self._capacity = Capacity()
        self._capacity.set_nodes(NODES)
        self._waiting = [("quantize", job.key) for job in jobs]
        self._where: dict[str, str] = {}

    def begin(self) -> None:
        self._dispatch()

    def end(self, stage: str, key: str) -> None:
        self._capacity.release(key, self._where[key])
        if stage == "quantize":
            self._waiting.append(("evaluate", key))
        self._dispatch()

    def _dispatch(self) -> None:
        self.num_events += 1
        unfit: set[Placement] = set()
        left = []
        for stage, key in self._waiting:
            wanted = (self.jobs[key].quantize if stage == "quantize" else self.jobs[key].evaluate)[0]
            node_id = None if wanted in unfit or (unfit and self.head_blocks) else self._first(wanted)
            if node_id is None:
                unfit.add(wanted)
                left.append((stage, key))
                continue
            self._capacity.take(key, wanted, node_id)
            self._where[key] = node_id
            self.start(key, stage, fresh_engine=stage == "evaluate")
        self._waiting = left

    def _first(self, wanted: Placement) -> str | None:
        return next((node.id for node in NODES if self._capacity.fits_without(wanted, node.id, ())), None)


class Fifo(FirstFit):
    """As first fit, but nothing overtakes the head of the queue."""

    head_blocks = True


def outcome(name: str, queue: Callable[[list[Job]], Queue], jobs: list[Job]) -> dict[str, str]:
    """A column of the first table."""
    started = time.process_time()
    run = queue(jobs)
    run.run()
    cpu_seconds = time.process_time() - started
    chain = max(true_seconds(job, "quantize") + true_seconds(job, "evaluate") for job in jobs)
    bound = max(run.work_gpu_seconds / NUM_GPUS, chain)
    return {
        "": name,
        "makespan, hours": f"{run.now / 3600:.2f}",
        "lower bound, hours": f"{bound / 3600:.2f}",
        "makespan / lower bound": f"{run.now / bound:.3f}",
        "GPU time at work": f"{run.work_gpu_seconds / NUM_GPUS / run.now:.1%}",
        "GPU time of engines that start": f"{run.engine_gpu_seconds / NUM_GPUS / run.now:.1%}",
        "engines started": str(run.num_engines),
        "events": f"{run.num_events:,}",
        "CPU seconds": f"{cpu_seconds:.2f}",
        "CPU milliseconds per event": f"{1000 * cpu_seconds / run.num_events:.3f}",
        "peak memory of the process, MiB": f"{_peak_mib():.0f}",
    }


# --- real Ray --------------------------------------------------------------------------------------------------------


def sleep_to_quantize(request: QuantizeRequest) -> Failure | None:
    """In place of orchestrator.scheduler._quantize."""
    time.sleep(RAY_SECONDS)
    return None


class SleepingHost:
    """In place of orchestrator.scheduler._Host."""

    def __init__(self, engine: str, tensor_parallel_size: int) -> None:
        """Nothing to start."""

    def evaluate(self, request: EvaluateRequest) -> Failure | None:
        time.sleep(RAY_SECONDS)
        scored = EvaluateResult([Metric("t.perplexity", 7.5, None, 8, "1")], "v", "fresh", 0.0)
        result = AttemptResult(request.evaluate_key, request.quantize_key, "SUCCEEDED", None, None, scored)
        create(Path(request.attempt_directory) / "result.json", to_json(result))
        return None


def on_ray(num_cells: int) -> dict[str, str]:
    """The column of the second table."""
    scheduling._quantize = sleep_to_quantize
    scheduling._Host = SleepingHost  # type: ignore[assignment, misc]
    cells = [make_cell(replace(make_config(), seed=seed)) for seed in range(num_cells)]
    wanted = (Placement(RAY_GPUS, RAY_GPUS, 1.0, RAY_GPUS),)
    jobs = [
        Job(c.key, c.quantize_key, f"model-{i % 8}", wanted, wanted, RAY_SECONDS, RAY_SECONDS, i < 8, False)
        for i, c in enumerate(cells)
    ]
    node = NodeConf(num_gpus=NUM_GPUS, gpu_memory_gib=80.0, num_cpus=64, memory_gib=512.0, flops=1e12, bandwidth=1e12)
    with tempfile.TemporaryDirectory() as directory:
        storage = Storage(Path(directory))
        cluster = ClusterConf(name="bench", storage=directory, nodes=[node], idle_seconds=IDLE_SECONDS)
        scheduler = scheduling.RayScheduler(cluster)
        try:
            started, cpu_started = time.perf_counter(), time.process_time()
            with SweepProgress(Console(file=io.StringIO()), num_cells, 0.0) as progress:
                Driver(cells, jobs, storage.states(cells), storage, scheduler, progress, cluster).run()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        finally:
            scheduler.close()
        results = [json.loads(path.read_text()) for path in Path(directory).glob("attempts/*/result.json")]
    slept = 2 * RAY_SECONDS * num_cells
    num_slots = NUM_GPUS // RAY_GPUS
    return {
        "": "ours",
        "cells that succeeded": str(sum(result["status"] == "SUCCEEDED" for result in results)),
        "attempts": str(len(results)),
        "wall seconds, Ray's start apart": f"{seconds:.1f}",
        "cells per second": f"{num_cells / seconds:.2f}",
        "GPU time asleep in a stage": f"{slept / num_slots / seconds:.1%}",
        "wall / lower bound": f"{seconds / (slept / num_slots):.2f}",
        "seconds per cell beside sleeping": f"{(seconds * num_slots - slept) / num_cells:.2f}",
        "CPU milliseconds of the driver per cell": f"{1000 * cpu_seconds / num_cells:.1f}",
        "peak memory of the driver, MiB": f"{_peak_mib():.0f}",
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
