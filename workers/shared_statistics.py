"""Statistics that another cell has left in the storage, so that the calibration need not run through a block again.

statistics/<key>/block-<index>.<part>.safetensors, written in one step; key.json beside them says what the key hashes.
The key names a calibration in a model that nothing is quantized of: `registry.shares_statistics` says which blocks of a
method see that. A part is named after what decides it beside the key. What is read is, bit by bit, what would have been
computed, or it is not used: the key holds all that the last bit depends on, threads and versions too, and every file
its own digest.

Nothing depends on these files. They can be computed anew, so a storage that takes none of them fails no cell, and
`ptqbench gc` removes them all.
"""

import hashlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import kernels
from conf.schema import NoRotate
from workers.api import QuantizeRequest
from workers.arch import ARCHITECTURES
from workers.canonical import key_of, plain
from workers.checkpoint import save_tensors
from workers.files import locked, replace
from workers.layout import statistics_directory, statistics_lock
from workers.methods.registry import PIPELINE_RECIPE, STAGES, STATISTICS_RECIPE
from workers.process import versions

log = logging.getLogger(__name__)

KEY = "key.json"

Parts = Mapping[str, Mapping[str, Tensor]]
"""Part -> name -> tensor on the host."""


def payload(request: QuantizeRequest, tokens: str) -> dict[str, Any]:
    """What decides the last bit of every statistic of a calibration. tokens: the hash of its windows.

    Rotations are drawn from the seed; without one the seed has only chosen the windows.
    """
    rotate = request.method.rotate
    return {
        "model": {"fingerprint": request.model.fingerprint, "tokenizer": request.model.tokenizer},
        "tokens": tokens,
        "experts": request.calibration.experts,
        "skip": plain(request.method.skip),
        "rotate": plain(rotate) | {"seed": None if isinstance(rotate, NoRotate) else request.seed},
        "numerics": plain(request.numerics),
        "recipes": {
            "pipeline": PIPELINE_RECIPE,
            "statistics": STATISTICS_RECIPE,
            "rotate": STAGES[type(rotate)].recipe,
            "architecture": ARCHITECTURES[request.model.architecture].recipe,
        },
        "process": {
            "versions": versions(),
            "kernels": kernels.status(),
            "machine": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
    }


class SharedStatistics:
    """What the storage holds of one calibration."""

    def __init__(self, storage: Path, payload: Mapping[str, Any], limit_bytes: int) -> None:
        """limit_bytes: of all statistics in the storage; nothing is written that would take more."""
        self._storage, self._payload, self._limit = storage, payload, limit_bytes
        self._root = statistics_directory(storage)
        self.directory = self._root / key_of(dict(payload))
        self._damaged: set[Path] = set()
        self._is_writing = True

    @classmethod
    def of(cls, request: QuantizeRequest, tokens: str) -> "SharedStatistics | None":
        """Those of a request's calibration, or null where sharing is turned off. tokens: the hash of its windows."""
        if not request.statistics_gib:
            return None
        return cls(Path(request.storage), payload(request, tokens), int(request.statistics_gib * 2**30))

    def take(self, block: int, parts: Sequence[str]) -> Parts | None:
        """All of these parts of a block, or null where one is missing or is not what was written."""
        paths = [self._path(block, part) for part in parts]
        if not all(path.exists() for path in paths):
            return None
        found = {}
        for part, path in zip(parts, paths, strict=True):
            tensors = self._read(path)
            if tensors is None:
                return None
            found[part] = tensors
        return found

    def put(self, block: int, parts: Parts) -> None:
        """Keep the parts of a block that are not there, all or none of them; where they cannot be kept, say so once.

        One process writes at a time, so that the limit holds; another one leaves it at that, and a later cell writes
        what is missing.
        """
        if not self._is_writing:
            return
        paths = {self._path(block, part): tensors for part, tensors in parts.items()}
        missing = {path: tensors for path, tensors in paths.items() if path in self._damaged or not path.exists()}
        try:
            self._root.mkdir(exist_ok=True)  # not its parents: a storage that is gone must not be begun anew
            with locked(statistics_lock(self._storage), wait=False):
                if self._has_room(missing):
                    self._write(missing)
        except BlockingIOError:
            log.info("statistics of block %d are not kept: another worker is writing", block)
        except OSError as error:
            # DISK_FULL and its like fail a cell where it must write. This it need not: what was begun is removed again,
            # and if the storage is no better when the block itself is saved, that fails as it always did.
            self._is_writing = False
            log.warning("statistics are not kept for other cells: %s", error)

    def _path(self, block: int, part: str) -> Path:
        return self.directory / f"block-{block:05d}.{part}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata == self._metadata(path, tensors):
                return tensors
            reason = "it is not what was written under this name"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        log.warning("%s is not used: %s; its statistics are computed anew", path, reason)
        self._damaged.add(path)
        return None

    def _write(self, files: Mapping[Path, Mapping[str, Tensor]]) -> None:
        self.directory.mkdir(exist_ok=True)
        if not (self.directory / KEY).exists():
            replace(self.directory / KEY, json.dumps(self._payload, indent=1, sort_keys=True) + "\n")
        for path, tensors in files.items():
            save_tensors(path, tensors, self._metadata(path, tensors))
            self._damaged.discard(path)

    def _metadata(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        return {"name": f"{self.directory.name}/{path.name}", "sha256": _digest(tensors)}

    def _has_room(self, files: Mapping[Path, Mapping[str, Tensor]]) -> bool:
        held = sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())
        needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        if held + needed <= self._limit:
            return True
        self._is_writing = False
        log.info(
            "statistics are not kept for other cells from here on: the storage has %.2f GiB of them, and "
            "cluster.statistics_gib allows %.2f; ptqbench gc --yes removes them",
            held / 2**30,
            self._limit / 2**30,
        )
        return False


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
