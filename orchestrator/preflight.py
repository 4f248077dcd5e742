"""What must be there before anything is spent: checked once, every problem named with the command that fixes it."""

from pathlib import Path

import kernels
from orchestrator.cell import Cell
from orchestrator.disk_needs import artifacts, shortages, statistics_to_write, still_to_write
from orchestrator.results import results_root
from orchestrator.scheduler import Scheduler
from orchestrator.shipping import PROJECT, inputs
from orchestrator.storage import Storage
from orchestrator.sweep import Sweep
from workers.errors import PrerequisiteError


def preflight(cells: list[Cell], storage: Storage, scheduler: Scheduler, sweep: Sweep) -> None:
    """Raise PrerequisiteError with all problems found."""
    problems = [*_import_problems(), *_engine_problems(cells), *_disk_problems(cells, storage, scheduler, sweep)]
    problems += scheduler.admit(storage.root, inputs(cells))
    if problems:
        raise PrerequisiteError("\n  ".join(problems))


def _import_problems() -> list[str]:
    """Another distribution is named `kernels` too, and Transformers asks for it by that name."""
    if Path(kernels.__file__).resolve().is_relative_to(PROJECT):
        return []
    return [
        f"`import kernels` finds {kernels.__file__}, not this project's; uninstall it: .venv/bin/pip uninstall kernels"
    ]


def _engine_problems(cells: list[Cell]) -> list[str]:
    missing = sorted({cell.engine.name for cell in cells if cell.engine.version == "not installed"})
    return [f"{name} is not installed; install what the lock lists: make setup" for name in missing]


def _disk_problems(cells: list[Cell], storage: Storage, scheduler: Scheduler, sweep: Sweep) -> list[str]:
    """Room for every checkpoint still to be made, the temporary copies beside them, statistics, MLflow's artifacts."""
    made = {key for cell in cells if storage.has_checkpoint(key := cell.quantize_key)}
    space = still_to_write(cells, made, sum(max(1, int(node.num_gpus)) for node in scheduler.nodes()))
    todo = [cell for cell in cells if cell.quantize_key not in made]
    statistics = statistics_to_write(todo, sweep.cluster.statistics_gib, storage.statistics_bytes())
    needs = {storage.root: space.kept + space.temporary + statistics}
    if sweep.tracking.uri is None:
        needs[results_root()] = artifacts(cells, upload_checkpoints=sweep.tracking.upload_checkpoints)
    return [
        f"{shortage}; remove checkpoints no sweep needs (ptqbench gc --yes), keep no statistics for other cells "
        "(cluster.statistics_gib=0), or give a larger disk: cluster.storage=<directory>"
        for shortage in shortages(needs)
    ]
