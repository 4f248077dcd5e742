"""A Ray cluster whose nodes have the lock's packages and no checkout: what travels, who is let in, who is not."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.command_line import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

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


# Prints the address of every socket that a Ray of this machine alone listens on.
LISTENING = """
import psutil
from conf.schema import ClusterConf
from orchestrator.scheduler import RayScheduler
scheduler = RayScheduler(ClusterConf(name="local"))
me = psutil.Process()
pids = {me.pid, *(process.pid for process in me.children(recursive=True))}
print(*[c.laddr.ip for c in psutil.net_connections("tcp") if c.pid in pids and c.status == "LISTEN"])
scheduler.close()
"""

# The nodes, all on loopback. A line on standard input adds a node whose path begins there; an empty one ends it.
NODES = """
import os, sys
from ray.cluster_utils import Cluster
options = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=options)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip():
        os.environ["PYTHONPATH"] = line.strip()
        node = cluster.add_node(**options)
    else:
        cluster.remove_node(node)
    print("done", flush=True)
cluster.shutdown()
"""


class Cluster:
    """Ray's processes for several nodes on this machine; they ask for a token."""

    def __init__(self, directory: Path) -> None:
        self.python = _python_without_the_project(directory / "environment")
        token = directory / "token"
        token.write_text(secrets.token_hex(32))
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or they would listen on every interface
            "OMP_NUM_THREADS": "1",
        }
        with (directory / "nodes.log").open("wb") as log:
            self._nodes = subprocess.Popen(
                [self.python, "-c", NODES],
                cwd=directory,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._said()

    def _said(self) -> str:
        assert self._nodes.stdout is not None
        return self._nodes.stdout.readline().strip()

    def tell(self, line: str) -> None:
        """Add or end a node, and wait until that is done."""
        assert self._nodes.stdin is not None
        self._nodes.stdin.write(line + "\n")
        self._nodes.stdin.flush()
        assert self._said() == "done"

    def close(self) -> None:
        """End every node."""
        family = psutil.Process(self._nodes.pid).children(recursive=True)
        self._nodes.communicate(timeout=60)
        for process in psutil.wait_procs(family, timeout=20)[1]:
            process.kill()


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
    absent = [str(cluster.python), "-c", "import ray, torch, workers"]
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
    cluster.tell(str(_other_lock(directory / "other")))
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
        cluster.tell("")


def test_one_machine_alone_listens_on_loopback_only(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", LISTENING], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    addresses = said.stdout.split()
    assert len(addresses) > 3
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
