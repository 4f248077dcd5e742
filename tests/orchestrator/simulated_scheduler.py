"""A cluster as a Scheduler that one driver holds: workers write as workers/entry.py does, hang, die and are not heard.

Time, chance and nodes are the world's (simulated_driver.py), which outlives the driver.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.events import End, EvaluateEnded, Node, QuantizeEnded
from orchestrator.placement import Placement
from orchestrator.storage import lost
from workers.api import (
    AttemptResult,
    Canary,
    EvaluateRequest,
    EvaluateResult,
    Failure,
    FailureKind,
    Manifest,
    Metric,
    QuantizeRequest,
    QuantizeResult,
    to_json,
)
from workers.files import create, replace

if TYPE_CHECKING:
    from tests.orchestrator.simulated_driver import World

EXITS = (FailureKind.OUT_OF_MEMORY, FailureKind.CUDA)  # a worker's process does not outlive these
WRITTEN = (FailureKind.TRANSIENT, FailureKind.OUT_OF_MEMORY, FailureKind.CUDA, FailureKind.ENGINE)  # by a worker


@dataclass(eq=False)
class _Worker:
    request: QuantizeRequest | EvaluateRequest
    key: str
    host_id: str | None
    node_id: str
    over: bool = False

    @property
    def stage(self) -> str:
        return "quantize" if self.host_id is None else "evaluate"

    @property
    def directory(self) -> Path:
        return Path(self.request.attempt_directory)


class SimulatedScheduler:
    """A driver's grip on the cluster: the Scheduler protocol, and workers that write as workers/entry.py does."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._random = world.random
        self._workers: dict[str, _Worker] = {}  # by cell
        self._hosts: dict[str, tuple[str, Placement]] = {}  # the driver's, dead or alive
        self._dead_hosts: set[str] = set()
        self._placements: dict[str, Placement] = {}  # of quantize workers
        self._ends: list[End] = []
        self._told: list[_Worker] = []  # whose ends the driver has taken, perhaps not all in hand yet
        self._abandoned = False
        self._lived: dict[str, set[str]] = {}

    def nodes(self) -> tuple[Node, ...]:
        self._world.call()
        return tuple(self._world.there.values())

    def newly_refused(self) -> list[str]:
        return []

    def admit(self, storage: Path, inputs: tuple[str, ...]) -> list[str]:
        return []

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        self._world.call()
        at_work = {w.request.quantize_key for w in self._workers.values() if w.host_id is None}
        assert request.quantize_key not in at_work, "a checkpoint is made twice at once"
        self._placements[key] = placement
        self._launch(_Worker(request, key, None, node_id))

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        self._world.call()
        assert host_id not in self._hosts
        self._hosts[host_id] = (node_id, placement)
        if node_id not in self._world.there:
            self._dead_hosts.add(host_id)
        self._check_room(node_id)

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        self._world.call()
        assert host_id not in {worker.host_id for worker in self._workers.values()}
        self._launch(_Worker(request, key, host_id, self._hosts[host_id][0]))

    def abort(self, key: str) -> None:
        self._world.call()
        worker = self._workers.pop(key)
        worker.over = True
        self._placements.pop(key, None)
        if worker.host_id is not None:
            self._dead_hosts.add(worker.host_id)
        self._ends = [end for end in self._ends if end.key != key]
        self._world.counted["stage passes its time limit"] += 1

    def stop_host(self, host_id: str) -> None:
        self._world.call()
        assert host_id not in {worker.host_id for worker in self._workers.values()}
        del self._hosts[host_id]

    def wait(self, timeout_seconds: float) -> list[End]:
        self._world.call()
        self._told = []
        if not self._workers:
            return []
        self._world.pass_until(self._world.now + timeout_seconds, unless=lambda: bool(self._ends))
        ends, self._ends = self._ends, []
        for end in ends:
            self._told.append(self._workers.pop(end.key))
            self._placements.pop(end.key, None)
        return ends

    def close(self) -> None:
        """Nothing to stop here: `abandon` ends what runs."""

    def check_empty(self) -> None:
        """A driver that came to its end left nothing running."""
        assert not self._workers and not self._hosts and not self._placements

    def abandon(self) -> None:
        """The driver is dead. Its workers die with it, some of them only after having ended."""
        self._abandoned = True
        heard_by_nobody = {end.key for end in self._ends}
        silent = [*self._told, *(worker for key, worker in self._workers.items() if key in heard_by_nobody)]
        self._world.unheard |= {worker.directory.name for worker in silent}
        for worker in self._workers.values():
            worker.over = worker.over or self._random.random() < 0.5

    def lose_node(self, node_id: str) -> None:
        """Hosts and workers there are gone, and their driver hears of it."""
        self._dead_hosts |= {host_id for host_id, (where, _) in self._hosts.items() if where == node_id}
        for worker in self._workers.values():
            if worker.node_id == node_id and not worker.over:
                self._die(worker)

    # --- workers -----------------------------------------------------------------------------------------------------

    def _launch(self, worker: _Worker) -> None:
        self._workers[worker.key] = worker
        self._attempts(worker.key).add(worker.directory.name)
        self._check_room(worker.node_id)
        chances, number = self._world.chances, self._random.random()
        if worker.node_id not in self._world.there or worker.host_id in self._dead_hosts:
            self._die(worker)
        elif number < chances.hangs:
            self._world.counted["stage hangs"] += 1
        else:
            self._world.at(self._random.uniform(0.5, 40.0), lambda: self._end(worker))

    def _attempts(self, key: str) -> set[str]:
        if self._lived.get(key) is None:
            self._lived[key] = set()
            self._world.lives[key].append(self._lived[key])
        return self._lived[key]

    def _check_room(self, node_id: str) -> None:
        held = [self._placements[w.key] for w in self._workers.values() if w.host_id is None and w.node_id == node_id]
        held += [placement for where, placement in self._hosts.values() if where == node_id]
        node = self._world.there.get(node_id)
        assert node is None or sum(p.num_gpus for p in held) <= node.num_gpus, f"GPUs of {node_id}: {held}"

    def _end(self, worker: _Worker) -> None:
        if worker.over:
            return
        chances = self._world.chances
        dies = self._random.random() < chances.dies
        if dies and self._random.random() < 0.5:
            self._die(worker)
            return
        kind = self._random.choice(WRITTEN) if self._random.random() < chances.fails else None
        failure = None if kind is None else Failure(worker.stage, kind, f"{kind} by chance")
        self._write(worker, failure)
        if dies:
            self._world.counted["worker dies just after its result was written"] += 1
            self._die(worker)
        else:
            self._answer(worker, failure, host_alive=kind not in EXITS)

    def _write(self, worker: _Worker, failure: Failure | None) -> None:
        """What a worker leaves. Written after its driver's death, it may come too late."""
        request = worker.request
        if failure is not None:
            result = AttemptResult(request.evaluate_key, request.quantize_key, "FAILED", failure)
            created = self._result(worker, result)
            self._world.counted["OUT_OF_MEMORY"] += failure.kind is FailureKind.OUT_OF_MEMORY
            self._world.counted["TRANSIENT"] += failure.kind is FailureKind.TRANSIENT
        elif worker.host_id is None:
            created = True
            made = QuantizeResult(request.quantize_key, False, 1.0, 1.0, 1.0)
            replace(worker.directory / "quantize.json", to_json(made))
            manifest = Path(request.storage) / "checkpoints" / request.quantize_key / "manifest.json"
            manifest.parent.mkdir(exist_ok=True)
            create(manifest, to_json(_manifest(request.quantize_key)))
        else:
            scored = succeeded(request.evaluate_key, request.quantize_key)
            created = self._result(worker, scored)
        if self._abandoned:
            self._world.counted["result written after the driver's death"] += created
            self._world.counted["result written too late"] += not created
            self._world.unheard.add(worker.directory.name)

    def _result(self, worker: _Worker, result: AttemptResult) -> bool:
        created = create(worker.directory / "result.json", to_json(result))
        if created:
            self._world.written[worker.directory.name] = result.status
        return created

    def _die(self, worker: _Worker) -> None:
        self._world.counted["worker dies"] += 1
        self._answer(worker, lost(worker.stage, "the worker process died"), host_alive=False)

    def _answer(self, worker: _Worker, failure: Failure | None, *, host_alive: bool) -> None:
        worker.over = True
        if worker.host_id is None:
            self._ends.append(QuantizeEnded(worker.key, failure))
        else:
            if not host_alive:
                self._dead_hosts.add(worker.host_id)
            self._ends.append(EvaluateEnded(worker.key, worker.host_id, failure, host_alive=host_alive))


def succeeded(evaluate_key: str, quantize_key: str) -> AttemptResult:
    """What the worker of a successful evaluation writes."""
    evaluated = EvaluateResult([Metric("t.perplexity", 7.5, None, 8, "1")], "v", "fresh", 0.0)
    return AttemptResult(evaluate_key, quantize_key, "SUCCEEDED", None, None, evaluated)


def _manifest(quantize_key: str) -> Manifest:
    return Manifest(quantize_key, "source", "packed", "hash", 1, 3.0, 1, Canary([], [], []), [], {}, 1.0, 1.0, {})
