"""What a sweep may be called, where it may run and where it may be shown."""

import re
from pathlib import Path

from conf.errors import ConfigError
from conf.schema import ClusterConf, NodeConf, RootConf, TrackingConf
from workers.secrets import check_secrets

RESERVED_NAMES = ("storage", "mlflow")
MAX_NAME = 100  # characters: names of files are made of it
MAX_PATH = 3000  # bytes; the system's 4096 less what lies below the storage
TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def check_execution(root: RootConf) -> None:
    """Raise ConfigError for a name, cluster or tracking that cannot be meant."""
    _check_name(root.name)
    _check_storage(root.cluster.storage)
    _check_cluster(root.cluster)
    _check_tracking(root.tracking)


def _check_name(name: str) -> None:
    if name in RESERVED_NAMES or not re.fullmatch(r"[\w][\w.+-]*", name) or len(name) > MAX_NAME:
        raise ConfigError(
            f"name={name}: a sweep's name is a directory under results/; use up to {MAX_NAME} letters, digits, `.`, "
            f"`_`, `+`, `-`, and not {' or '.join(RESERVED_NAMES)}"
        )


def _check_storage(storage: str) -> None:
    if "://" in storage:
        raise ConfigError(
            f"cluster.storage={storage}: not a URL but a directory that every node sees (NFS, Lustre): "
            "checkpoints and attempts appear by renames and hard links, which object stores do not have. MLflow's "
            "artifacts may lie in one: docker/README.md"
        )
    length = len(str(Path(storage).absolute()).encode())
    if not storage.strip() or "\0" in storage or length > MAX_PATH:
        raise ConfigError(
            f"cluster.storage={storage}: a directory is needed, with a path of 1 to {MAX_PATH} bytes, such as "
            f"{ClusterConf.storage}"
        )


def _check_cluster(cluster: ClusterConf) -> None:
    address = cluster.address
    if address is not None and not re.fullmatch(
        r"auto|local|(ray://)?[^\s/:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address
    ):
        raise ConfigError(f"cluster.address={address}: <host>:<port> of a Ray cluster, auto, or null for this machine")
    if cluster.idle_seconds < 0:
        raise ConfigError(f"cluster.idle_seconds={cluster.idle_seconds}: at least 0")
    if cluster.statistics_gib < 0:
        raise ConfigError(f"cluster.statistics_gib={cluster.statistics_gib}: at least 0, which keeps none")
    for key in ("quantize_timeout_seconds", "evaluate_timeout_seconds"):
        if getattr(cluster, key) <= 0:
            raise ConfigError(f"cluster.{key}={getattr(cluster, key)}: more than 0, or every cell would end in TIMEOUT")
    check_secrets(cluster.secrets)
    if cluster.nodes is None:
        return
    for index, node in enumerate(cluster.nodes):
        if problem := _node_problem(node):
            raise ConfigError(f"cluster.nodes[{index}].{problem}")
    if not any(node.count > 0 for node in cluster.nodes):
        raise ConfigError("cluster.nodes: at least one node, or null for what Ray finds")


def _node_problem(node: NodeConf) -> str | None:
    """What no node can have, or null."""
    for key in ("count", "num_gpus", "gpu_memory_gib"):
        if getattr(node, key) < 0:
            return f"{key}={getattr(node, key)}: at least 0"
    for key in ("num_cpus", "memory_gib", "flops", "bandwidth"):
        if getattr(node, key) <= 0:
            return f"{key}={getattr(node, key)}: more than 0"
    if node.num_gpus > 0 and node.gpu_memory_gib <= 0:
        return f"gpu_memory_gib={node.gpu_memory_gib}: more than 0, because num_gpus={node.num_gpus}"
    return None


def _check_tracking(tracking: TrackingConf) -> None:
    scheme, separator, _ = (tracking.uri or "").partition("://")
    if tracking.uri is not None and not (separator and scheme.partition("+")[0] in TRACKING_SCHEMES):
        raise ConfigError(
            f"tracking.uri={tracking.uri}: give an address that MLflow knows, such as http://127.0.0.1:5000 (also: "
            f"{', '.join(TRACKING_SCHEMES)}), or null for a file under results/mlflow"
        )
    if not tracking.experiment.strip():
        raise ConfigError("tracking.experiment is empty; give the name of an MLflow experiment, such as ptq-bench")
