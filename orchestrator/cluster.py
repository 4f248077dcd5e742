"""What the cluster offers, as data: declared, seen on this machine, or told by Ray."""

import os
import subprocess

import psutil

from conf.schema import ClusterConf, NodeConf
from orchestrator.cost_model import assumed_node

GIB = 2**30


def declared_nodes(cluster: ClusterConf) -> list[NodeConf]:
    """The nodes that cells are planned for. Rates of a machine that was not declared are assumed."""
    if cluster.nodes is not None:
        return cluster.nodes
    if cluster.address is not None:
        from orchestrator.scheduler import describe

        return describe(cluster)
    gpus = gpu_memories_gib()
    memory = psutil.virtual_memory().total / GIB
    return [assumed_node(os.cpu_count() or 1, memory, len(gpus), min(gpus, default=0.0))]


def gpu_memories_gib() -> list[float]:
    """Memory of each GPU of this machine that its driver reports, GiB."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return []
    return [float(line) / 1024 for line in listing.split("\n") if line.strip()]


def device(nodes: list[NodeConf], asked: str) -> str:
    """`auto` becomes cuda where any node has a GPU."""
    if asked != "auto":
        return asked
    return "cuda" if any(node.num_gpus for node in nodes) else "cpu"
