"""What a sweep will still write, and whether that fits where it goes: the figures of `plan` against what is free."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from orchestrator.cell import Cell
from orchestrator.memory_model import Disk, disk, statistics_bytes

GIB = 2**30
ATTEMPT_BYTES = 2**20  # cell.json, result.json, log.txt, layers.json: a fifth of this for a model of four blocks


def still_to_write(cells: list[Cell], made: Collection[str], num_at_once: int) -> Disk:
    """Bytes on the storage for these cells. made: checkpoints that are there; num_at_once: stages that run together.

    A checkpoint that several cells share is made once; a temporary copy lies there for each stage at work.
    """
    spaces = {cell.quantize_key: _disk(cell) for cell in cells}
    kept = sum(space.kept for key, space in spaces.items() if key not in made)
    temporary = sorted((_disk(cell).temporary for cell in cells), reverse=True)
    return Disk(kept + len(cells) * ATTEMPT_BYTES, sum(temporary[:num_at_once]))


def statistics_to_write(cells: list[Cell], limit_gib: float, held: int) -> int:
    """Bytes of statistics that these cells may leave for others, at most what the limit allows beside those held.

    What several of them share is counted for each, so this is no less than it will be.
    """
    wanted = sum(
        statistics_bytes(c.model.architecture, c.shape, c.config.method, c.config.calibration, c.config.numerics)
        for c in cells
    )
    return max(0, min(wanted, int(limit_gib * GIB) - held))


def artifacts(cells: list[Cell], *, upload_checkpoints: bool) -> int:
    """Bytes of what an MLflow on this machine keeps for these cells under results/."""
    checkpoints = sum(_disk(cell).kept for cell in cells) if upload_checkpoints else 0
    return checkpoints + len(cells) * ATTEMPT_BYTES


def shortages(needs: Mapping[Path, int]) -> list[str]:
    """Which of these directories, which must be there, have less room than they need in bytes.

    Directories on one file system need the room together.
    """
    devices: dict[int, list[Path]] = {}
    for directory in needs:
        devices.setdefault(directory.stat().st_dev, []).append(directory)
    return [
        f"{' and '.join(map(str, directories))}: {free / GIB:.1f} GiB free, the sweep needs about {needed / GIB:.1f}"
        for directories in devices.values()
        if (needed := sum(needs[d] for d in directories)) > (free := shutil.disk_usage(directories[0]).free)
    ]


def _disk(cell: Cell) -> Disk:
    config, weight_format = cell.config, cell.engine.weight_format
    return disk(
        cell.model.architecture,
        cell.shape,
        config.method,
        config.scheme,
        weight_format,
        config.calibration,
        config.numerics,
    )
