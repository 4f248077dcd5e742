"""A Ray cluster whose nodes have the lock's packages and no checkout: what travels, who is let in, who is not."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.command_line import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

# A driver that prints what it hears of nodes, until one that joins after the start has been refused.
LATE_NODE = """
import sys, time
from pathlib import Path
from conf.schema import ClusterConf
from orchestrator.scheduler import RayScheduler
scheduler = RayScheduler(ClusterConf(name="ray", address=sys.argv[1]))
print("at the start:", scheduler.admit(Path(sys.argv[2]), ()), len(scheduler.nodes()), flush=True)
deadline, refused = time.monotonic() + 120, []
while not refused and time.monotonic() < deadline:
    time.sleep(0.2)
    assert len(scheduler.nodes()) == 1
    refused = scheduler.newly_refused()
print("later:", refused, flush=True)
scheduler.nodes()
print("then:", scheduler.newly_refused(), len(scheduler.nodes()), flush=True)
scheduler.close()
"""


class Cluster:
    """Raylets on this machine, started as `ray start` starts them on several; they ask for a token."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.python = _python_without_the_project(directory / "environment")
        token = directory / "token"
        token.write_text(secrets.token_hex(32))
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "OMP_NUM_THREADS": "1",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        port = self.address.split(":")[1]
        self.start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={directory / 'ray'}")

    def start(self, *options: str, **variables: str) -> None:
        """Start a node, and wait until it is one."""
        command = [str(self.python), "-m", "ray.scripts.scripts", "start", *options, "--node-ip-address=127.0.0.1"]
        log = self._directory / f"node-{len(self._nodes)}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                [*command, "--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats", "--block"],
                cwd=self._directory,
                env=self.environment | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._nodes.append(node)
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def stop_last(self) -> None:
        """End the node that was started last, and whatever it started."""
        node = self._nodes.pop()
        family = psutil.Process(node.pid).children(recursive=True)
        node.send_signal(signal.SIGTERM)
        node.wait(60)
        for process in psutil.wait_procs(family, timeout=20)[1]:
            process.kill()

    def close(self) -> None:
        while self._nodes:
            self.stop_last()


def _python_without_the_project(directory: Path) -> Path:
    """An interpreter that finds every installed package, and not this repository."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages.pth").write_text("\n".join(packages))  # a .pth file found there is not read in its turn
    return directory / "bin" / "python"


def _other_lock(directory: Path) -> Path:
    """A directory that, first on the path, makes PyTorch another version than the one pinned."""
    metadata = directory / "torch-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    return directory


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("c", numbered=True))
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a user stands: beside a folder that has the name of one of the packages, and other code in it."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "__init__.py").write_text("raise RuntimeError('code of the current directory')\n")
    (tmp_path / "storage" / "leases").mkdir(parents=True)
    return tmp_path


def sweep(cluster: Cluster, directory: Path) -> subprocess.CompletedProcess[str]:
    """The shipped mini model at 3 bits, driven from outside the repository."""
    return subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ptqbench")), "sweep", "name=far", "experiment=smoke"),
            *("model=mini-llama", "method=rtn", "bits=3", "group_size=null", "engine=transformers"),
            *("suite.tasks=[]", "suite.task_path=null"),
            *("cluster=ray", f"cluster.address={cluster.address}", f"cluster.storage={directory / 'storage'}"),
        ],
        cwd=directory,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_node_needs_no_checkout_and_the_shipped_model_travels(cluster: Cluster, directory: Path) -> None:
    absent = [cluster.python, "-c", "import ray, torch, workers"]
    tried = subprocess.run(absent, cwd=directory, capture_output=True, check=False)
    assert b"No module named 'workers'" in tried.stderr
    swept = sweep(cluster, directory)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    (log,) = (directory / "storage" / "attempts").glob("*/log.txt")
    assert str(ROOT / "workers") not in log.read_text()


def test_nodes_with_another_lock_are_refused_whenever_they_come(cluster: Cluster, directory: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", LATE_NODE, cluster.address, str(directory / "storage")],
        cwd=ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "at the start: [] 1\n"
    cluster.start(f"--address={cluster.address}", PYTHONPATH=str(_other_lock(directory / "other")))
    try:
        said, _ = driver.communicate(timeout=150)
        later, then = said.splitlines()
        assert f"node {socket.gethostname()} (" in later
        assert "is pinned, 1.0 is installed" in later and "torch" in later and "make setup" in later
        assert then == "then: [] 1"

        refused = sweep(cluster, directory)
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert f"node {socket.gethostname()} (" in refused.stderr and "make setup" in refused.stderr
        assert not list((directory / "storage" / "attempts").iterdir())
    finally:
        cluster.stop_last()


def test_a_driver_without_the_token_is_told_of_it(cluster: Cluster, directory: Path) -> None:
    strangers = {name: value for name, value in cluster.environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    command = [str(Path(sys.executable).with_name("ptqbench")), "plan", "experiment=smoke", "cluster=ray"]
    stranger = subprocess.run(
        [*command, f"cluster.address={cluster.address}"],
        cwd=directory,
        env=strangers | {"RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert stranger.returncode == 3, stranger.stdout + stranger.stderr
    assert "Traceback" not in stranger.stderr and "RAY_AUTH_TOKEN" in stranger.stderr
