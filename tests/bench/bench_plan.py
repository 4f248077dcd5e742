"""What a sweep of 10,000 cells costs before and after the work itself: its plan, and every look at its storage."""

import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from orchestrator import results
from orchestrator.cell import Cell
from orchestrator.cluster import declared_nodes
from orchestrator.jobs import make_jobs
from orchestrator.plan import plan_cells
from orchestrator.resolve import resolve
from orchestrator.storage import Storage
from orchestrator.sweep import expand
from orchestrator.table import cells_table
from orchestrator.views import print_status, write_views
from workers.api import AttemptResult, Canary, EvaluateResult, LayerReport, Manifest, Metric, to_json

ROOT = Path(__file__).resolve().parents[2]
GRID = (
    "experiment=paper",
    "model=llama1-7b,llama1-13b,llama2-7b,llama2-13b,llama3-8b,llama3.1-8b",
    "method=none,rtn,gptq",
    "clip@method.clip=minmax,mse",
    "bits=2,3,4,8",
    "group_size=null,64,128",
    "calibration.num_sequences=64,128",
    "seed=range(0,17)",
)
BLOCKS, LINEARS, PROMPTS, PROMPT_TOKENS = 32, 7, 8, 64  # what a manifest of a 7B model says of its layers and prompts
LAYER = LayerReport(
    0, "self_attn.q_proj", "GptqRound", 4, 128, 4.15, 2**24, 2**18, 0.01, 0, 0.5, 0.01, False, None, 1.0
)
T = TypeVar("T")


def main() -> None:
    """Print seconds of wall clock and of this process's CPUs, and MiB where they say something."""
    print(f"{'':44} {'wall s':>8} {'CPU s':>8} {'MiB':>8}")
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        plan_in_a_process(Path(directory))
        sweep = timed("grid to points", lambda: expand(GRID))
        nodes = declared_nodes(sweep.cluster)
        cells = timed("points to cells", lambda: resolve(sweep, nodes, online=False))
        timed("estimates", lambda: plan_cells(cells, nodes))
        timed("jobs of all cells", lambda: make_jobs(cells, nodes, set()))
        storage = Storage(Path("storage"))
        fill(storage, cells)
        states = timed("storage: states", lambda: storage.states(cells))
        timed("storage: states again, as a driver looks", lambda: storage.states(cells))
        timed("table of cells", lambda: cells_table(cells, states, storage, {}))
        timed("cells.csv and report", lambda: write_views(sweep, cells, states, storage, {}))
        for path in sorted(results.sweep_directory(sweep.name).glob("[cr]*")):
            print(f"  {path.name:60} {path.stat().st_size / 2**20:8.1f}")
        for is_terminal in (False, True):
            said = io.StringIO()
            console = Console(file=said, width=160, force_terminal=is_terminal)
            where = "terminal" if is_terminal else "file"
            timed(f"status, {where}", partial(print_status, console, sweep.name, cells, states))
            print(f"  lines {said.getvalue().count(chr(10))}")
    print(f"{len(cells)} cells; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


def plan_in_a_process(directory: Path) -> None:
    """`ptqbench plan` as a user calls it, its output going to a file."""
    output = directory / "plan.txt"
    started = time.perf_counter()
    with output.open("w") as file:
        command = [sys.executable, "-m", "orchestrator.cli", "plan", *GRID]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=file, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report("ptqbench plan", time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10)


def timed(name: str, work: Callable[[], T]) -> T:
    """Do it and print what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    report(name, time.perf_counter() - wall, time.process_time() - cpu)
    return result


def report(name: str, wall: float, cpu: float, mib: float | None = None) -> None:
    """One line of the table."""
    print(f"{name:44} {wall:8.2f} {cpu:8.2f} {'' if mib is None else f'{mib:8.0f}'}".rstrip(), flush=True)


def fill(storage: Storage, cells: list[Cell]) -> None:
    """Every cell has succeeded at its first attempt; all manifests are one file, as large as that of a 7B model."""
    tokens = [[1] * PROMPT_TOKENS] * PROMPTS
    canary = Canary(
        tokens, [[-1.2345678] * (PROMPT_TOKENS - 1)] * PROMPTS, [[-1.3456789] * (PROMPT_TOKENS - 1)] * PROMPTS
    )
    layers = [replace(LAYER, block=block) for block in range(BLOCKS) for _ in range(LINEARS)]
    manifest = Manifest("", "", "packed", "sha256:0", 2**18, 4.15, 2**32, canary, layers, {}, 600.0, 20.0, {})
    text = storage.root / "manifest.json"
    text.write_text(to_json(manifest))
    for number, cell in enumerate(cells):
        directory = storage.checkpoint(cell.quantize_key)
        if not directory.exists():
            directory.mkdir()
            (directory / "manifest.json").hardlink_to(text)
        metrics = [Metric("wikitext2.perplexity", 5 + number / len(cells), 0.1, 166, "1")]
        metrics += [Metric(f"{task}.acc", 0.5, 0.01, 1000, "fraction") for task in cell.config.suite.tasks]
        scored = EvaluateResult(metrics, "0", "fresh", 0.001, {"load": 60.0, "perplexity": 90.0}, 70.0)
        ended = AttemptResult(cell.evaluate_key, cell.quantize_key, "SUCCEEDED", evaluate=scored)
        (storage.open_attempt(cell, 1).directory / "result.json").write_text(to_json(ended))


if __name__ == "__main__":
    main()
