"""Sweeps through the real Driver, Storage and Tracker, on a cluster, a clock and an MLflow that are simulated.

One driver follows another over the same storage, each as orchestrator/run.py starts one, until a sweep comes to its
end. A driver may be killed at any call it makes: it is dropped as it is, and nothing of it cleans up.
"""

import dataclasses
import heapq
import io
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from conf.schema import ClusterConf, TrackingConf
from orchestrator.cell import Cell, CellStatus
from orchestrator.driver import Driver
from orchestrator.events import Job, Node
from orchestrator.progress import SweepProgress
from orchestrator.run import _also_lost
from orchestrator.run_page import TAG_ATTEMPT
from orchestrator.storage import CellState, Storage
from orchestrator.tracker import RUN_STATUS, Tracker
from orchestrator.verbs import RUNNABLE
from tests.orchestrator.simulated_mlflow import SimulatedMlflow
from tests.orchestrator.simulated_scheduler import SimulatedScheduler, succeeded
from workers.api import to_json
from workers.errors import PrerequisiteError
from workers.files import create

SWEEP = "simulated"
TIME_LIMIT_SECONDS = 60.0
FAULT_SECONDS = 200.0  # nodes leave, MLflow goes and other drivers come within this time


class Killed(BaseException):
    """The driver's process is gone."""


@dataclass(frozen=True)
class Chances:
    """Of a stage: to fail, to die (before or just after it has written its result), to hang. Of drivers: below."""

    fails: float = 0.0
    dies: float = 0.0
    hangs: float = 0.0
    num_kills: int = 0
    num_node_changes: int = 0
    num_outages: int = 0  # of MLflow
    num_intruders: int = 0  # drivers of other sweeps that want the same cells


class World:
    """What outlives a driver: the clock, the nodes, MLflow, and workers that have not noticed its death yet."""

    def __init__(self, cells: list[Cell], jobs: list[Job], nodes: list[Node], root: Path, seed: int, chances: Chances):
        self.now = 0.0
        self.counted: Counter[str] = Counter()
        self.written: dict[str, str] = {}  # attempt -> the status its worker wrote as its result
        self.unheard: set[str] = set()  # attempts whose end no driver lived to hear
        self.lives: defaultdict[str, list[set[str]]] = defaultdict(list)  # cell -> its attempts, driver by driver
        self.cells, self.jobs, self.root, self.chances = cells, jobs, root, chances
        self.random = random.Random(f"{seed} {chances} {jobs}")
        self.there = {node.id: node for node in nodes}
        self.mlflow = SimulatedMlflow(self._mlflow_answers)
        self.mlflow_away = False
        self._numbers = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._num_kills = chances.num_kills
        self._hiccup_chance = 0.005 * chances.num_outages  # of MLflow, at a call, in the midst of what it is told
        self._calls_left = 0
        self._driver: SimulatedScheduler | None = None
        for node in nodes:
            for _ in range(chances.num_node_changes):
                self.at(self.random.uniform(0.0, FAULT_SECONDS), lambda n=node: self._leave(n))  # type: ignore[misc]
        for _ in range(chances.num_outages):
            self.at(self.random.uniform(0.0, FAULT_SECONDS), self._lose_mlflow)
        for _ in range(chances.num_intruders):
            self.at(self.random.uniform(0.0, FAULT_SECONDS), self._intrude)

    # --- time.monotonic and time.sleep, for orchestrator.driver ------------------------------------------------------

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.call()
        self.pass_until(self.now + seconds)

    def pass_until(self, end: float, unless: Callable[[], bool] = lambda: False) -> None:
        while self._agenda and self._agenda[0][0] <= end and not unless():
            self.now, _, happen = heapq.heappop(self._agenda)
            happen()
        if not unless():
            self.now = end

    def at(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._numbers), happen))

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def call(self) -> None:
        """A driver calls; it may be its last."""
        self._calls_left -= 1
        if self._num_kills and not self._calls_left:
            self._num_kills -= 1
            self.counted["driver killed"] += 1
            raise Killed

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self._num_kills, self._hiccup_chance, self.mlflow_away = 0, 0.0, False

    def _mlflow_answers(self) -> bool:
        self.call()
        if self.random.random() < self._hiccup_chance:
            self._lose_mlflow()
        return not self.mlflow_away

    def _lose_mlflow(self) -> None:
        self.counted["MLflow goes away"] += not self.mlflow_away
        self.mlflow_away = True

        def comes_back() -> None:
            self.mlflow_away = False

        self.at(self.random.uniform(0.0, 100.0), comes_back)

    def _leave(self, node: Node) -> None:
        if self.there.pop(node.id, None) is None:
            return
        self.counted["node leaves"] += 1
        if self._driver is not None:
            self._driver.lose_node(node.id)

        def comes_back() -> None:
            self.there[node.id] = node

        self.at(self.random.uniform(0.0, 60.0), comes_back)

    def _intrude(self) -> None:
        """A driver of another sweep opens an attempt at a cell that nobody has, and ends it, or dies."""
        storage = Storage(self.root)
        states = storage.states(self.cells)
        free = [c for c in self.cells if states[c.key].status in (CellStatus.PENDING, CellStatus.FAILED)]
        if not free:
            return
        cell = self.random.choice(free)
        attempt = storage.open_attempt(cell, states[cell.key].next_number)
        self.counted["another sweep takes a cell"] += 1
        if self.random.random() < 0.5:
            create(attempt.directory / "result.json", to_json(succeeded(cell.evaluate_key, cell.quantize_key)))

    # --- drivers -----------------------------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """One run of the sweep; says whether it came to its end."""
        self._calls_left = int(10 ** self.random.uniform(0.0, 2.7))  # as often early as late
        self.counted["drivers"] += 1
        storage = Storage(self.root)
        try:
            with storage.driving(SWEEP):
                self._drive(storage)
            return True
        except Killed:
            return False
        except PrerequisiteError:
            self.counted["sweep refused: no MLflow"] += 1
            return False
        finally:
            if self._driver is not None:
                self._driver.abandon()
                self._driver = None
            self.pass_until(self.now + self.random.uniform(0.0, 30.0))

    def _drive(self, storage: Storage) -> None:
        storage.end_abandoned(self.cells)
        states = storage.states(self.cells)
        tracker = self.tracker(storage)
        todo = self._unfinished(self.cells, states)
        while todo:
            ready = {cell.quantize_key for cell in todo if storage.has_checkpoint(cell.quantize_key)}
            keys = {cell.key for cell in todo}
            jobs = [_job_at(job, ready) for job in self.jobs if job.key in keys]
            scheduler = self._driver = SimulatedScheduler(self)
            cluster = ClusterConf(
                name=SWEEP,
                idle_seconds=30.0,
                quantize_timeout_seconds=TIME_LIMIT_SECONDS,
                evaluate_timeout_seconds=TIME_LIMIT_SECONDS,
            )
            with SweepProgress(Console(file=io.StringIO()), len(todo), 0.0) as progress:
                left = MortalDriver(
                    todo,
                    jobs,
                    states,
                    storage,
                    scheduler,
                    progress,
                    cluster,
                    show=lambda: tracker.log_attempts(self.cells, storage.states(self.cells)),
                ).run()
            scheduler.check_empty()
            storage.end_abandoned(left)
            states = storage.states(self.cells)
            todo = self._unfinished(left, states)
        tracker.log_attempts(self.cells, states)
        tracker.close(CellStatus.SUCCEEDED, self.root)
        if tracker.problem is None:
            self.check_shown(states)

    def tracker(self, storage: Storage, *, restore: bool = False) -> Tracker:
        """MLflow as run.open_tracker does it."""
        return Tracker(TrackingConf("simulated", "http://mlflow"), self.root, storage, SWEEP, {}, restore=restore)

    def check_shown(self, states: dict[str, CellState]) -> None:
        """MLflow has a run for each attempt that has ended, whole, and no other."""
        attempts = [attempt for state in states.values() for attempt in state.attempts]
        ended = [(a.name, RUN_STATUS[CellStatus(a.result.status)]) for a in attempts if a.result is not None]
        assert sorted(self.mlflow.runs_with(TAG_ATTEMPT)) == sorted(ended)

    def _unfinished(self, cells: list[Cell], states: dict[str, CellState]) -> list[Cell]:
        return [cell for cell in cells if states[cell.key].status in _also_lost(RUNNABLE, states[cell.key])]


class MortalDriver(Driver):
    """A driver that leaves everything as it is when it is killed."""

    def run(self) -> list[Cell]:
        self._loop()
        return self._left


def _job_at(job: Job, ready: set[str]) -> Job:
    return dataclasses.replace(job, checkpoint_ready=job.quantize_key in ready)
