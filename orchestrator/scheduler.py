"""Where actions become processes: the Scheduler protocol, on Ray and in this process.

The only module that imports ray. Ray's own retries are off: each attempt is a row and may need another placement.
"""

import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from conf.schema import ClusterConf, NodeConf
from orchestrator.cluster import gpu_memories_gib
from orchestrator.cost_model import assumed_node
from orchestrator.events import End, EvaluateEnded, Node, QuantizeEnded
from orchestrator.placement import Placement
from orchestrator.storage import lost, read_result
from workers.api import EvaluateRequest, Failure, QuantizeRequest
from workers.errors import PrerequisiteError

GIB = 2**30
PROBE_SECONDS = 60.0
PACKAGES = ("conf", "orchestrator", "workers", "kernels")


class Scheduler(Protocol):
    """Starts what the schedule says and reports what came of it."""

    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are alive now, whole (not what is free)."""

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        """Run the quantize stage; its end comes from `wait`."""

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        """Start an engine host."""

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        """Score a cell on a host; its end comes from `wait`."""

    def abort(self, key: str) -> None:
        """Kill the process at work on a cell (with it, its engine host); nothing more comes of it from `wait`."""

    def stop_host(self, host_id: str) -> None:
        """Give a host's resources back; one that is gone already is no error."""

    def wait(self, timeout_seconds: float) -> list[End]:
        """Ends that have come in, waiting at most `timeout_seconds` for the first."""

    def storage_problems(self, root: Path) -> list[str]:
        """Why nodes cannot use the storage; empty when each of them wrote what the driver then read."""

    def close(self) -> None:
        """Stop everything that still runs."""


class InlineScheduler:
    """Everything in this process, one thing after another: for debugging, with ordinary stack traces."""

    def __init__(self) -> None:
        self._events: list[End] = []
        self._hosts: dict[str, Any] = {}

    def nodes(self) -> tuple[Node, ...]:
        memory_gib = psutil.virtual_memory().total / GIB
        return (Node("here", num_gpus=_visible_gpus(), num_cpus=os.cpu_count() or 1, memory_gib=memory_gib),)

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        from workers.entry import quantize_stage

        self._events.append(QuantizeEnded(key, quantize_stage(request, capture_output=False)))

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        from workers.entry import EngineHost

        self._hosts[host_id] = EngineHost(engine, placement.tensor_parallel_size)

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        failure = self._hosts[host_id].evaluate(request, capture_output=False)
        self._events.append(EvaluateEnded(key, host_id, failure))

    def abort(self, key: str) -> None:
        raise NotImplementedError("a stage in this process cannot be killed from within it")

    def stop_host(self, host_id: str) -> None:
        if host_id in self._hosts:
            self._hosts.pop(host_id).close()

    def storage_problems(self, root: Path) -> list[str]:
        return []

    def wait(self, timeout_seconds: float) -> list[End]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for host_id in list(self._hosts):
            self.stop_host(host_id)


@dataclass
class _Pending:
    """A call in flight. host_id is null for a quantize task."""

    key: str
    host_id: str | None
    attempt_directory: Path


@dataclass
class RayScheduler:
    """On a Ray cluster: one task per quantize stage, one actor per engine host."""

    cluster: ClusterConf
    _hosts: dict[str, Any] = field(default_factory=dict)
    _pending: dict[Any, _Pending] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        root = Path(__file__).resolve().parents[1]
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
        runtime: dict[str, Any] = {"env_vars": environment}
        if self.cluster.address is not None:
            runtime["py_modules"] = [str(root / package) for package in PACKAGES]
        try:
            ray.init(
                address=self.cluster.address or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=runtime,
                **({} if self.cluster.address else _local_resources(self.cluster)),
            )
        except ConnectionError as error:
            raise PrerequisiteError(
                f"no Ray cluster answers at {self.cluster.address} ({error}). Start one: ray start --head --port=6379. "
                "If it runs and wants its token (it does where ~/.ray/auth_token existed), set RAY_AUTH_MODE=token"
            ) from error

    def nodes(self) -> tuple[Node, ...]:
        import ray

        return tuple(
            Node(
                id=node["NodeID"],
                num_gpus=node["Resources"].get("GPU", 0.0),
                num_cpus=node["Resources"].get("CPU", 0.0),
                memory_gib=node["Resources"].get("memory", 0.0) / GIB,
            )
            for node in ray.nodes()
            if node["Alive"]
        )

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        import ray

        task = ray.remote(_quantize).options(**_options(placement, node_id), max_retries=0, name=f"quantize {key[:8]}")
        self._pending[task.remote(request)] = _Pending(key, None, Path(request.attempt_directory))

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        import ray

        actor = ray.remote(_Host).options(**_options(placement, node_id), max_restarts=0, max_task_retries=0)
        self._hosts[host_id] = actor.remote(engine, placement.tensor_parallel_size)

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        reference = self._hosts[host_id].evaluate.remote(request)
        self._pending[reference] = _Pending(key, host_id, Path(request.attempt_directory))

    def abort(self, key: str) -> None:
        import ray

        for reference, pending in list(self._pending.items()):
            if pending.key == key:
                del self._pending[reference]
                if pending.host_id is None:
                    ray.cancel(reference, force=True)
                else:
                    self.stop_host(pending.host_id)

    def stop_host(self, host_id: str) -> None:
        import ray

        if host_id in self._hosts:
            ray.kill(self._hosts.pop(host_id), no_restart=True)

    def storage_problems(self, root: Path) -> list[str]:
        import ray

        nodes = self.nodes()
        probes = {
            node.id: ray.remote(_probe).options(**_pinned(node.id), num_cpus=0).remote(str(root), node.id)
            for node in nodes
        }
        problems = []
        for node_id, probe in probes.items():
            try:
                ray.get(probe, timeout=PROBE_SECONDS)
                (root / "leases" / f"probe-{node_id}").unlink()
            except (ray.exceptions.RayError, OSError) as error:
                problems.append(
                    f"node {node_id[:8]} cannot use the storage {root} ({str(error).strip().splitlines()[-1]}); give a "
                    "directory that every node sees under one path: cluster.storage=<directory>"
                )
        return problems

    def wait(self, timeout_seconds: float) -> list[End]:
        import ray

        if not self._pending:
            return []
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout_seconds)
        more, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        return [self._event(reference) for reference in dict.fromkeys([*done, *more])]

    def _event(self, reference: Any) -> End:
        import ray

        pending = self._pending.pop(reference)
        try:
            failure, alive = ray.get(reference), True
        except ray.exceptions.RayError as error:
            failure, alive = _failure_of_lost_worker(pending, error), False
        if pending.host_id is None:
            return QuantizeEnded(pending.key, failure)
        return EvaluateEnded(pending.key, pending.host_id, failure, host_alive=alive)

    def close(self) -> None:
        import ray

        for reference, pending in self._pending.items():
            if pending.host_id is None:
                ray.cancel(reference, force=True)
        for host_id in list(self._hosts):
            self.stop_host(host_id)
        ray.shutdown()


def _failure_of_lost_worker(pending: _Pending, error: Exception) -> Failure:
    """What the worker wrote before it went down, else that it went down."""
    result = read_result(pending.attempt_directory)
    if result is not None and result.failure is not None:
        return result.failure
    stage = "quantize" if pending.host_id is None else "evaluate"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return lost(stage, f"the worker process died: {first_line}")


def _quantize(request: QuantizeRequest) -> Failure | None:
    """The Ray task."""
    from workers.entry import quantize_stage

    return quantize_stage(request)


class _Host:
    """The Ray actor."""

    def __init__(self, engine: str, tensor_parallel_size: int) -> None:
        from workers.entry import EngineHost

        self._host = EngineHost(engine, tensor_parallel_size)

    def evaluate(self, request: EvaluateRequest) -> Failure | None:
        return self._host.evaluate(request)


def describe(cluster: ClusterConf) -> list[NodeConf]:
    """The nodes of a running Ray cluster, GPU memory included. Rates are assumed."""
    import ray

    scheduler = RayScheduler(cluster)
    try:
        memories = {
            node.id: ray.get(ray.remote(gpu_memories_gib).options(**_pinned(node.id), num_cpus=0).remote())
            for node in scheduler.nodes()
        }
        return [
            assumed_node(int(n.num_cpus), n.memory_gib, int(n.num_gpus), min(memories[n.id], default=0.0))
            for n in scheduler.nodes()
        ]
    finally:
        scheduler.close()


def _probe(root: str, node_id: str) -> None:
    """Write where the driver will look."""
    (Path(root) / "leases" / f"probe-{node_id}").write_text(node_id, encoding="utf-8")


def _pinned(node_id: str) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def _options(placement: Placement, node_id: str) -> dict[str, Any]:
    """One request for everything at once, on the node the schedule chose."""
    threads = str(max(1, int(placement.num_cpus)))
    return {
        "num_gpus": placement.num_gpus,
        "num_cpus": placement.num_cpus,
        "memory": int(placement.memory_gib * GIB),
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
        **_pinned(node_id),
    }


def _local_resources(cluster: ClusterConf) -> dict[str, Any]:
    """A described node is what Ray is told this machine has; otherwise Ray looks for itself.

    Memory is always told: cells are placed by what the machine has, and Ray would keep a third of it for its own store.
    """
    if cluster.nodes is None:
        return {"_memory": psutil.virtual_memory().total}
    if len(cluster.nodes) != 1 or cluster.nodes[0].count != 1:
        raise PrerequisiteError(
            f"cluster={cluster.name} describes several nodes, for planning; to run there: "
            "cluster=ray cluster.address=<host:port>"
        )
    node = cluster.nodes[0]
    return {"num_cpus": node.num_cpus, "num_gpus": node.num_gpus, "_memory": math.ceil(node.memory_gib * GIB)}


def _visible_gpus() -> int:
    devices = Path("/proc/driver/nvidia/gpus")
    return len(list(devices.iterdir())) if devices.exists() else 0
