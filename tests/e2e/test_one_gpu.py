"""Two models on a cluster that says it has one GPU: engines take turns, and none keeps another's cells waiting."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command_line import ENVIRONMENT, ROOT, cells, write_tokens
from tests.workers.tiny_requests import write_llama

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

ONE_GPU = "{num_gpus: 1, gpu_memory_gib: 8, num_cpus: 2, memory_gib: 8, flops: 1.0e11, bandwidth: 1.0e10}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cells for each of two models have run."""
    directory = tmp_path_factory.mktemp("one_gpu")
    first, second = (write_llama(directory / name, seed=seed) for seed, name in enumerate(("first", "second")))
    sweep = ["name=gpu", "model=hf", f"model.repo={first},{second}", "method=none,rtn,gptq", "bits=3"]
    cluster = [f"cluster.nodes=[{ONE_GPU}]", "numerics.device=cpu"]
    script = [sys.executable, str(ROOT / "tests" / "e2e" / "recorded_sweep.py"), str(directory / "actions")]
    run = subprocess.run(
        [*script, "sweep", *sweep, *cluster, *write_tokens(directory)],
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return directory


def actions(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "actions").read_text().splitlines()]


def test_all_six_cells_succeed(swept: Path) -> None:
    table = cells(swept, "gpu")
    assert len(table) == 6 and set(table.status) == {"SUCCEEDED"} and set(table.attempt) == {1}


def test_engines_take_the_one_gpu_in_turn(swept: Path) -> None:
    alive: set[str] = set()
    started = 0
    for entry in actions(swept):
        if entry["action"] == "start_host":
            assert entry["num_gpus"] == 1 and not alive
            alive.add(entry["host"])
            started += 1
        elif entry["action"] == "stop_host":
            alive.remove(entry["host"])
    assert not alive
    assert started >= 2  # each model needs its own


def test_no_idle_engine_holds_the_gpu_while_a_cell_waits_for_it(swept: Path) -> None:
    """Looked at whenever the driver has done all it wanted to and waits for ends."""
    ready: set[str] = set()  # checkpoint made, not yet scored
    busy: dict[str, str | None] = {}  # host -> cell
    num_moments = 0
    for entry in actions(swept):
        match entry["action"]:
            case "QuantizeEnded":
                ready.add(entry["cell"])
            case "start_host":
                busy[entry["host"]] = None
            case "start_evaluate":
                busy[entry["host"]] = entry["cell"]
                ready.remove(entry["cell"])
            case "EvaluateEnded":
                (host,) = [host for host, cell in busy.items() if cell == entry["cell"]]
                busy[host] = None
            case "stop_host":
                del busy[entry["host"]]
            case "wait":
                idle = [host for host, cell in busy.items() if cell is None]
                assert not (ready and idle), entry
                num_moments += bool(ready)
    assert num_moments > 0  # there were moments at which a cell had to wait for a busy engine
