"""Where actions become processes: the Scheduler protocol, and Ray behind it.

The only module that imports ray. Ray's own retries are off: each attempt is a row and may need another placement.
"""

import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from conf.schema import ClusterConf, NodeConf
from orchestrator.admission import Terms, read_lanes, refusals, survey
from orchestrator.cluster import gpu_memories_gib
from orchestrator.cost_model import assumed_node
from orchestrator.events import End, EvaluateEnded, Node, QuantizeEnded
from orchestrator.head import ClusterLostError, in_time, refuse_silence, require_head
from orchestrator.placement import Placement
from orchestrator.shipping import PROJECT, inbound, outbound, runtime_environment
from orchestrator.storage import lost, read_result
from workers.api import EvaluateRequest, Failure, QuantizeRequest
from workers.errors import PrerequisiteError
from workers.redaction import Redactor
from workers.secrets import known_secrets

GIB = 2**30
PROBE_SECONDS = 60.0
HEAD_SECONDS = 30.0  # a head that is only restarted, or a network that hiccups, is back by then
RAY_GIVES_UP_SECONDS = 3600  # without its head Ray ends the driver; its own 60 s are too few to close a sweep


class Scheduler(Protocol):
    """Starts what the schedule says and reports what came of it."""

    def nodes(self) -> tuple[Node, ...]:
        """The nodes that are alive now and admitted, whole (not what is free)."""

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

    def admit(self, storage: Path, inputs: tuple[str, ...]) -> list[str]:
        """Ask every node whether it can take part, and say why some cannot. Nodes that join later are asked too.

        inputs: what the cells read, which a node must have under the same paths.
        """

    def newly_refused(self) -> list[str]:
        """Why nodes that joined since the last call cannot take part."""

    def close(self) -> None:
        """Stop everything that still runs."""


@dataclass
class _Pending:
    """A call in flight. host_id is null for a quantize task."""

    key: str
    host_id: str | None
    attempt_directory: Path


@dataclass
class _Asked:
    """A node that was asked. answer: the reference of its survey; deadline on the monotonic clock."""

    name: str
    answer: Any
    deadline: float


@dataclass
class RayScheduler:
    """On a Ray cluster: one task per quantize stage, one actor per engine host."""

    cluster: ClusterConf
    _hosts: dict[str, Any] = field(default_factory=dict)
    _pending: dict[Any, _Pending] = field(default_factory=dict)
    _terms: Terms | None = None
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _admitted: dict[str, bool] = field(default_factory=dict)
    _refusals: list[str] = field(default_factory=list)
    _lost: bool = False

    def __post_init__(self) -> None:
        if self.cluster.address is not None:
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(RAY_GIVES_UP_SECONDS))
        else:  # Ray's name for a cluster of several machines; without it, it listens on loopback alone
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
        runtime: dict[str, Any] = {"env_vars": environment}
        if self.cluster.address is not None:
            runtime |= runtime_environment(PROJECT)
        try:
            if self.cluster.address is not None:
                refuse_silence(self.cluster.address)
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
                f"no Ray cluster answers at {self.cluster.address} ({error}). Start one (docker/README.md). If it runs "
                "and wants its token: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=<file with the token>"
            ) from error
        except RuntimeError as error:
            if not str(error).startswith("Version mismatch"):
                raise
            raise PrerequisiteError(
                f"{error}Start the driver and every node from environments of one lock: make setup"
            ) from error

    def nodes(self) -> tuple[Node, ...]:
        alive = self._alive()
        if self._terms is not None:
            self._ask(alive)
            self._hear(alive)
        return tuple(
            Node(
                id=node_id,
                num_gpus=node["Resources"].get("GPU", 0.0),
                num_cpus=node["Resources"].get("CPU", 0.0),
                memory_gib=node["Resources"].get("memory", 0.0) / GIB,
            )
            for node_id, node in alive.items()
            if self._terms is None or self._admitted.get(node_id)
        )

    def _alive(self) -> dict[str, dict[str, Any]]:
        """What Ray knows of each node, by its id. Raises ClusterLostError."""
        import ray

        self._require_cluster()
        try:
            nodes = in_time(ray.nodes, HEAD_SECONDS)
        except ClusterLostError:
            self._lost = True
            raise
        alive = {node["NodeID"]: node for node in nodes if node["Alive"]}
        if ray.get_runtime_context().get_node_id() not in alive:  # Ray then ends whatever this driver starts
            self._lost = True
            raise ClusterLostError(
                "the Ray node that this driver is connected to went down; start Ray there again if it is yours, then "
                "run the same command: what was finished is kept"
            )
        return alive

    def _require_cluster(self) -> None:
        """Raise ClusterLostError when the head is gone: before any call to Ray that needs it, for that would hang."""
        import ray

        try:
            require_head(ray.get_runtime_context().gcs_address, HEAD_SECONDS)
        except ClusterLostError:
            self._lost = True
            raise

    def admit(self, storage: Path, inputs: tuple[str, ...]) -> list[str]:
        import ray

        lanes = {} if self.cluster.address is None else read_lanes(PROJECT / "locks")
        self._terms = Terms(storage, inputs, lanes, self.cluster.secrets)
        self._ask(self._alive())
        answers = [asked.answer for asked in self._asked.values()]
        ray.wait(answers, num_returns=len(answers), timeout=PROBE_SECONDS)
        self._hear(self._alive())
        return self.newly_refused()

    def newly_refused(self) -> list[str]:
        reasons, self._refusals = self._refusals, []
        return reasons

    def _ask(self, alive: dict[str, dict[str, Any]]) -> None:
        """Start a survey on each node that has not been asked."""
        import ray

        assert self._terms is not None
        for node_id in alive.keys() - self._asked.keys() - self._admitted.keys():
            task = ray.remote(survey).options(**_pinned(node_id), num_cpus=0, max_retries=0, name="survey")
            answer = task.remote(self._terms, node_id)
            self._asked[node_id] = _Asked(_name(alive[node_id]), answer, time.monotonic() + PROBE_SECONDS)

    def _hear(self, alive: dict[str, dict[str, Any]]) -> None:
        """Admit or refuse the nodes whose survey is in, or overdue. A node that left is forgotten."""
        import ray

        for node_id, asked in list(self._asked.items()):
            ready, _ = ray.wait([asked.answer], timeout=0)
            if node_id in alive and not ready and time.monotonic() < asked.deadline:
                continue
            del self._asked[node_id]
            if node_id in alive:
                reasons = self._reasons(node_id, asked.answer) if ready else [f"no answer in {PROBE_SECONDS:.0f} s"]
                self._admitted[node_id] = not reasons
                self._refusals += [f"node {asked.name}: {reason}" for reason in reasons]

    def _reasons(self, node_id: str, answer: Any) -> list[str]:
        import ray

        assert self._terms is not None
        try:
            return refusals(self._terms, ray.get(answer), node_id)
        except ray.exceptions.RayError as error:
            return [f"it cannot run this project's code: {_last_line(error)}"]

    def start_quantize(self, key: str, request: QuantizeRequest, placement: Placement, node_id: str) -> None:
        import ray

        self._require_cluster()
        task = ray.remote(_quantize).options(**_options(placement, node_id), max_retries=0, name=f"quantize {key[:8]}")
        self._pending[task.remote(outbound(request))] = _Pending(key, None, Path(request.attempt_directory))

    def start_host(self, host_id: str, engine: str, placement: Placement, node_id: str) -> None:
        import ray

        self._require_cluster()
        actor = ray.remote(_Host).options(**_options(placement, node_id), max_restarts=0, max_task_retries=0)
        self._hosts[host_id] = actor.remote(engine, placement.tensor_parallel_size)

    def start_evaluate(self, key: str, request: EvaluateRequest, host_id: str) -> None:
        reference = self._hosts[host_id].evaluate.remote(outbound(request))
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
            failure, alive = _failure_of_lost_worker(pending, error, self.cluster), False
        if pending.host_id is None:
            return QuantizeEnded(pending.key, failure)
        return EvaluateEnded(pending.key, pending.host_id, failure, host_alive=alive)

    def close(self) -> None:
        import ray

        for reference, pending in self._pending.items():
            if pending.host_id is None:
                ray.cancel(reference, force=True)
        if self._lost:  # engine hosts end with their nodes, and the process leaves Ray as it is (cli.main)
            return
        for host_id in list(self._hosts):
            self.stop_host(host_id)
        ray.shutdown()


def _failure_of_lost_worker(pending: _Pending, error: Exception, cluster: ClusterConf) -> Failure:
    """What the worker wrote before it went down, else that it went down."""
    result = read_result(pending.attempt_directory)
    if result is not None and result.failure is not None:
        return result.failure
    stage = "quantize" if pending.host_id is None else "evaluate"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    mask = Redactor(known_secrets(cluster.secrets))  # what Ray says may repeat what the worker said
    return lost(stage, mask(f"the worker process died: {first_line}"))


def _quantize(request: QuantizeRequest) -> Failure | None:
    """The Ray task."""
    from workers.entry import quantize_stage

    return quantize_stage(inbound(request))


class _Host:
    """The Ray actor."""

    def __init__(self, engine: str, tensor_parallel_size: int) -> None:
        from workers.entry import EngineHost

        self._host = EngineHost(engine, tensor_parallel_size)

    def evaluate(self, request: EvaluateRequest) -> Failure | None:
        return self._host.evaluate(inbound(request))


def describe(cluster: ClusterConf) -> list[NodeConf]:
    """The nodes of a running Ray cluster, GPU memory included. Rates are assumed."""
    import ray

    scheduler = RayScheduler(cluster)
    try:
        nodes = scheduler.nodes()
        tasks = [ray.remote(gpu_memories_gib).options(**_pinned(node.id), num_cpus=0).remote() for node in nodes]
        memories = ray.get(tasks, timeout=PROBE_SECONDS)
        return [
            assumed_node(int(node.num_cpus), node.memory_gib, int(node.num_gpus), min(gpus, default=0.0))
            for node, gpus in zip(nodes, memories, strict=True)
        ]
    except ray.exceptions.RayError as error:
        raise PrerequisiteError(
            f"a node of the cluster cannot run this project's code ({_last_line(error)}); there, in this version of "
            "the project: make setup, then start Ray from that .venv"
        ) from error
    finally:
        scheduler.close()


def _name(node: dict[str, Any]) -> str:
    """As a person looks for it: host, address, and Ray's short id."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


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
