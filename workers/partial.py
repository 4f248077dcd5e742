"""An unfinished checkpoint on disk: what a killed worker leaves and its successor takes up.

After each block three files are written, each in one step: the block's shard, its reports with the shard's sha256, and
last the streams, whose metadata says how many blocks they have passed. That last file is the commit.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from workers.api import LayerReport, from_json
from workers.checkpoint import save_tensors, sha256
from workers.files import replace

log = logging.getLogger(__name__)

STREAMS = "streams.safetensors"


def shard_name(index: int) -> str:
    """File of block `index`."""
    return f"block-{index:05d}.safetensors"


def save_block(
    partial: Path,
    index: int,
    tensors: Mapping[str, torch.Tensor],
    reports: list[LayerReport],
    streams: Mapping[str, torch.Tensor],
) -> None:
    """Put block `index` and the inputs of the next one on disk. A baseline has no tensors and no shard."""
    digest = None
    if tensors:
        save_tensors(partial / shard_name(index), tensors, {"format": "pt"})
        digest = sha256(partial / shard_name(index))
    record = {"sha256": digest, "names": sorted(tensors), "reports": [vars(report) for report in reports]}
    replace(partial / f"block-{index:05d}.json", json.dumps(record) + "\n")
    save_tensors(partial / STREAMS, streams, {"blocks": str(index + 1)})


def take_up(partial: Path) -> tuple[list[list[LayerReport]], dict[str, torch.Tensor]]:
    """Reports of the blocks saved whole, and the streams after them; empty where there is nothing to take up.

    Makes the directory where there is none, and removes what cannot be used: files that a killed worker was writing,
    and everything when a saved block is not what it was. Raises FileNotFoundError where there is no storage.
    """
    partial.mkdir(exist_ok=True)
    _remove(partial.glob(".*"))
    try:
        with safe_open(partial / STREAMS, framework="pt") as file:
            count = int(file.metadata()["blocks"])
            streams = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        reports = [_load_block(partial, index) for index in range(count)]
    except (FileNotFoundError, SafetensorError, ValueError) as error:
        if any(partial.iterdir()):
            log.warning("what an earlier attempt left cannot be taken up: %s; starting with the first block", error)
        _remove(partial.iterdir())
        return [], {}
    return reports, streams


def shard_files(partial: Path, num_blocks: int) -> dict[str, str]:
    """Tensor name -> shard, over all blocks."""
    files: dict[str, str] = {}
    for index in range(num_blocks):
        record = json.loads((partial / f"block-{index:05d}.json").read_text(encoding="utf-8"))
        files |= dict.fromkeys(record["names"], shard_name(index))
    return files


def clean(partial: Path) -> None:
    """Remove what only resumption needs."""
    _remove([*partial.glob("block-*.json"), partial / STREAMS])


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def _load_block(partial: Path, index: int) -> list[LayerReport]:
    record = json.loads((partial / f"block-{index:05d}.json").read_text(encoding="utf-8"))
    if record["sha256"] is not None and sha256(partial / shard_name(index)) != record["sha256"]:
        raise ValueError(f"{partial / shard_name(index)} is not what was saved")
    return [from_json(LayerReport, json.dumps(report)) for report in record["reports"]]
