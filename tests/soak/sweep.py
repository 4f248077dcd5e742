"""The sweep under test: a small random LLaMA, three methods, bits and groups; scored by Transformers."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.command_line import command, write_tokens
from tests.soak.ray_cluster import RAY_ENVIRONMENT, NodeSize, RayCluster
from tests.workers.tiny_requests import write_llama

# Two nodes of one kind and a larger one, which is the head. Two CPUs: the machine that plays all of them has few.
NODE_SIZES = [NodeSize(num_gpus=4, num_cpus=2), NodeSize(num_gpus=2, num_cpus=1), NodeSize(num_gpus=2, num_cpus=1)]
AXES = ("method=none,rtn,gptq", "bits=3,4", "group_size=null,32")  # 9 cells, no two with the same numbers
RUN_SECONDS = 900.0


def write_inputs(directory: Path, axes: tuple[str, ...] = AXES) -> list[str]:
    """The model and its texts; returns the overrides that name them and the grid over them."""
    model = write_llama(
        directory / "model", hidden_size=128, intermediate_size=512, num_hidden_layers=6, initializer_range=0.1
    )
    return ["model=hf", f"model.repo={model}", *axes, *write_tokens(directory), "numerics.device=cpu"]


def on_cluster(cluster: RayCluster) -> list[str]:
    """Overrides: this cluster, with GPUs that are only counted."""
    nodes = ", ".join(
        f"{{num_gpus: {s.num_gpus}, gpu_memory_gib: 8, num_cpus: {s.num_cpus}, memory_gib: {s.memory_gib}, "
        "flops: 1.0e11, bandwidth: 1.0e10}"
        for s in (node.size for node in cluster.nodes)
    )
    return ["cluster=ray", f"cluster.address={cluster.address}", f"cluster.nodes=[{nodes}]"]


@dataclass
class SweepUnderTest:
    """One grid with a directory, a storage and a name of its own. driver: the process at work on it, or the last."""

    directory: Path
    name: str
    overrides: list[str]
    driver: subprocess.Popen[bytes] | None = None

    @property
    def storage(self) -> Path:
        return self.directory / "storage"

    @property
    def log(self) -> Path:
        return self.directory / "driver.log"

    def start(self) -> subprocess.Popen[bytes]:
        """`ptqbench sweep`, appending what it says to `log`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        arguments = [f"name={self.name}", *self.overrides, f"cluster.storage={self.storage}"]
        with self.log.open("ab") as output:
            self.driver = subprocess.Popen(
                command("sweep", *arguments),
                cwd=self.directory,
                env=RAY_ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.driver

    def run(self) -> int:
        """`ptqbench sweep` to its end; returns the exit code."""
        return self.start().wait(RUN_SECONDS)
