"""A Ray cluster of several nodes on this machine, each with an address, a directory and logical GPUs of its own.

Every node is a session of processes that `ray start` has begun; only these are ever looked for or ended.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.command_line import ENVIRONMENT
from tests.e2e.servers import free_port

# Without a token, wherever this user's other clusters keep one; and no report of use.
RAY_ENVIRONMENT = {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class NodeSize:
    """What a node says it has; nothing checks that the machine does. memory_gib: for placement alone."""

    num_gpus: int
    num_cpus: int
    memory_gib: int = 64


@dataclass
class RayNode:
    """A node by its address on loopback. session: of its processes, null while it is down."""

    address: str
    size: NodeSize
    directory: Path
    session: int | None = None

    def processes(self) -> list[psutil.Process]:
        """What runs of it, the raylet's workers included."""
        return [] if self.session is None else [p for p in psutil.process_iter() if session_of(p) == self.session]

    def raylet(self) -> psutil.Process | None:
        """The process that is the node, for Ray."""
        return next((p for p in self.processes() if name_of(p) == "raylet"), None)


class RayCluster:
    """The first node is the head. Use as a context: leaving ends every process."""

    def __init__(self, directory: Path, sizes: list[NodeSize]) -> None:
        """directory: where each node gets a working directory of its own."""
        self._sockets = Path(tempfile.mkdtemp(prefix="ptq-"))  # a socket's path may have 107 characters
        self._port = free_port()
        self.nodes = [RayNode(f"127.0.0.{2 + i}", size, directory / f"node-{i}") for i, size in enumerate(sizes)]
        self.address = f"{self.head.address}:{self._port}"

    @property
    def head(self) -> RayNode:
        return self.nodes[0]

    def __enter__(self) -> "RayCluster":
        try:
            self.heal()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def heal(self) -> list[str]:
        """Start what is down; everything when the head is. Returns the addresses of the nodes it started."""
        if not self._has_head():
            for node in self.nodes:
                end_node(node)
        down = [node for node in self.nodes if node.raylet() is None]
        for node in down:
            end_node(node)
            self._start(node)
        return [node.address for node in down]

    def close(self) -> None:
        """End every process of every node."""
        for node in self.nodes:
            end_node(node)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def workers(self, title: str) -> list[psutil.Process]:
        """Ray's workers on all nodes whose process title starts with `ray::<title>`."""
        found = [process for node in self.nodes for process in node.processes()]
        return [process for process in found if title_of(process).startswith(f"ray::{title}")]

    def _has_head(self) -> bool:
        names = {name_of(process) for process in self.head.processes()}
        return {"gcs_server", "raylet"} <= names

    def _start(self, node: RayNode) -> None:
        """Raises RuntimeError with Ray's own words."""
        node.directory.mkdir(parents=True, exist_ok=True)
        role = self._head_options() if node is self.head else [f"--address={self.address}"]
        size = [f"--num-gpus={node.size.num_gpus}", f"--num-cpus={node.size.num_cpus}"]
        memory = [f"--memory={node.size.memory_gib * 2**30}", "--object-store-memory=80000000"]
        own = f"--temp-dir={self._sockets / node.address}"  # sharing one, nodes remove each other's copy of our code
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={node.address}"]
        log = node.directory / "ray-start.log"
        with log.open("wb") as output:
            starting = subprocess.Popen(
                [*command, *role, *size, *memory, own],
                cwd=node.directory,
                env=RAY_ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node.session = starting.pid
        if starting.wait(120) != 0:
            raise RuntimeError(log.read_text())

    def _head_options(self) -> list[str]:
        return [
            *("--head", f"--port={self._port}", "--include-dashboard=false"),
            *(f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"),
        ]


def end_node(node: RayNode) -> None:
    """Kill every process of a node and wait until they are gone."""
    until(lambda: not kill_all(node.processes()), 30, f"node {node.address} ends")
    node.session = None


def kill_all(processes: list[psutil.Process]) -> list[psutil.Process]:
    """SIGKILL to each; returns them."""
    for process in processes:
        kill(process)
    return processes


def kill(process: psutil.Process) -> None:
    """SIGKILL, unless it has ended."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def session_of(process: psutil.Process) -> int | None:
    """The session a living process belongs to; null for what has ended, zombies included."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).rstrip()
    except psutil.NoSuchProcess:
        return ""


def until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait. Raises TimeoutError saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {seconds:.0f} s: {what}")
        time.sleep(0.1)
