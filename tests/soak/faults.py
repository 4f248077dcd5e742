"""What is killed, with SIGKILL. Each fault says whom it hit, or null when there was nobody to hit."""

import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tests.e2e.servers import Server
from tests.soak.ray_cluster import RayCluster, kill, kill_all, title_of


@dataclass
class Scene:
    """Everything that can be hit."""

    cluster: RayCluster
    server: Server
    driver: subprocess.Popen[bytes]
    random: random.Random


def worker(scene: Scene) -> str | None:
    """A process that quantizes."""
    return _one_of(scene, "quantize")


def engine_host(scene: Scene) -> str | None:
    """An engine's actor, scoring or between two cells."""
    return _one_of(scene, "_Host")


def raylet(scene: Scene) -> str | None:
    """A node other than the head, with all it runs."""
    node = scene.random.choice(scene.cluster.nodes[1:])
    process = node.raylet()
    if process is None:
        return None
    kill(process)
    return f"raylet of {node.address}"


def driver(scene: Scene) -> str | None:
    """`ptqbench sweep` itself; the cluster lives on."""
    scene.driver.kill()
    scene.driver.wait()
    return f"driver {scene.driver.pid}"


def mlflow(scene: Scene) -> str | None:
    """The tracking server."""
    scene.server.stop()
    return f"MLflow at {scene.server.uri}"


def driver_and_mlflow(scene: Scene) -> str | None:
    """Both at once."""
    return f"{driver(scene)} and {mlflow(scene)}"


def head_raylet(scene: Scene) -> str | None:
    """The head's raylet alone, to which Ray as a rule connects the driver."""
    process = scene.cluster.head.raylet()
    assert process is not None
    kill(process)
    return f"raylet of {scene.cluster.head.address}, the head"


def head(scene: Scene) -> str | None:
    """The head with all its processes; nothing of Ray works without it."""
    return f"all {len(kill_all(scene.cluster.head.processes()))} processes of the head"


def everything(scene: Scene) -> str | None:
    """Every process there is, as in a reboot of all machines."""
    count = sum(len(kill_all(node.processes())) for node in scene.cluster.nodes)
    return f"{driver_and_mlflow(scene)} and all {count} processes of Ray"


FAULTS: dict[str, Callable[[Scene], str | None]] = {
    "worker": worker,
    "engine host": engine_host,
    "raylet": raylet,
    "driver": driver,
    "mlflow": mlflow,
    "driver + mlflow": driver_and_mlflow,
    "head's raylet": head_raylet,
    "head": head,
    "everything": everything,
}
ENDS_THE_DRIVER = ("driver", "driver + mlflow", "head's raylet", "head", "everything")


def _one_of(scene: Scene, title: str) -> str | None:
    found = scene.cluster.workers(title)
    if not found:
        return None
    victim = scene.random.choice(found)
    said = title_of(victim)
    kill(victim)
    return f"{said}, process {victim.pid}"
