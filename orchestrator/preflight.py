"""What must be there before anything is spent: checked once, every problem named with the command that fixes it."""

import shutil
from pathlib import Path

import kernels
from orchestrator.cell import Cell
from orchestrator.memory_model import disk
from orchestrator.scheduler import Scheduler
from orchestrator.shipping import PROJECT, inputs
from orchestrator.storage import Storage
from workers.errors import PrerequisiteError

GIB = 2**30


def preflight(cells: list[Cell], storage: Storage, scheduler: Scheduler) -> None:
    """Raise PrerequisiteError with all problems found."""
    problems = [*_import_problems(), *_engine_problems(cells), *_disk_problems(cells, storage)]
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


def _disk_problems(cells: list[Cell], storage: Storage) -> list[str]:
    """Room for every checkpoint still to be made, and for the largest temporary copy beside them."""
    kept, temporary = 0, 0
    for cell in {c.quantize_key: c for c in cells}.values():
        if storage.has_checkpoint(cell.quantize_key):
            continue
        space = disk(
            cell.model.architecture, cell.shape, cell.config.scheme, cell.engine.weight_format, cell.config.calibration
        )
        kept, temporary = kept + space.kept, max(temporary, space.temporary)
    free = shutil.disk_usage(storage.root).free
    if kept + temporary <= free:
        return []
    return [
        f"{storage.root} has {free / GIB:.1f} GiB free, the sweep needs about {(kept + temporary) / GIB:.1f}; remove "
        "checkpoints no sweep needs (ptqbench gc --yes), or give a larger disk: cluster.storage=<directory>"
    ]
