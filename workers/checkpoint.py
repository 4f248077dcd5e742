"""Checkpoints on disk: block-wise reading from safetensors shards, and the atomic save of our own.

A checkpoint of ours is a directory `checkpoints/<quantize_key>/`. It grows under `.partial-<quantize_key>`, one shard
per finished block, so that a killed worker's successor resumes; the manifest is written last and the directory renamed,
so that a checkpoint either exists whole or not at all.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workers.api import Manifest, from_json, to_json
from workers.errors import BadInputError
from workers.files import locked, replace
from workers.layout import MANIFEST, claim_file
from workers.model_parts import weight_folders

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class CheckpointReader:
    """Tensors of a Hugging Face directory by name; opens a shard only while reading from it."""

    def __init__(self, directory: Path) -> None:
        """Raises BadInputError when the index or a shard is missing or damaged."""
        self.directory = directory
        self.files = _tensor_files(directory)

    def names(self, prefix: str) -> list[str]:
        """Tensor names that start with `prefix`."""
        return [name for name in self.files if name.startswith(prefix)]

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors on the CPU, in the dtype of the file. Raises BadInputError naming file and tensor."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self.files:
                raise BadInputError(
                    f"{self.directory}: no tensor `{name}`; is this the architecture its config.json says?"
                )
            by_file.setdefault(self.files[name], []).append(name)
        tensors: dict[str, torch.Tensor] = {}
        for file, wanted in by_file.items():
            path = self.directory / file
            try:
                with safe_open(path, framework="pt") as shard:
                    for name in wanted:
                        tensors[name] = shard.get_tensor(name).clone()
            except (SafetensorError, OSError) as error:
                more = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
                raise BadInputError(_damage(path, f"`{wanted[0]}`{more}", error)) from error
        return tensors

    def require_whole(self) -> None:
        """Raise BadInputError when a shard is not as long as its header says. Reads the headers alone."""
        for file in sorted(set(self.files.values())):
            path = self.directory / file
            try:
                with safe_open(path, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise BadInputError(_damage(path, "the header", error)) from error

    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum((self.directory / f).stat().st_size for f in set(self.files.values()))


def _tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> file, its path from `directory`."""
    files: dict[str, str] = {}
    for folder in weight_folders(directory):
        found = _files_of(folder)
        if twice := sorted(files.keys() & found.keys()):
            raise BadInputError(f"{directory}: {len(twice)} tensors are in two of its parts, first `{twice[0]}`")
        files |= {name: (folder / file).relative_to(directory).as_posix() for name, file in found.items()}
    return files


def _files_of(directory: Path) -> dict[str, str]:
    """Tensor name -> file of one folder."""
    index = directory / INDEX
    if index.exists():
        files = _weight_map(index)
        for file in sorted(set(files.values())):
            if not (directory / file).exists():
                lost = [name for name, f in files.items() if f == file]
                raise BadInputError(
                    f"{directory / file}: shard is missing; the index places {len(lost)} tensors in it, "
                    f"first `{lost[0]}`; copy or download it again"
                )
        return files
    single = directory / SINGLE
    if not single.exists():
        pickled = ", ".join(sorted(path.name for path in directory.glob("*.bin")))
        raise BadInputError(
            f"{directory}: neither {SINGLE} nor {INDEX}"
            + (f", only pickled weights ({pickled}), which can run code when loaded" if pickled else "")
            + "; save the model as safetensors: save_pretrained(<directory>) of Transformers does"
        )
    try:
        with safe_open(single, framework="pt") as shard:
            return dict.fromkeys(shard.keys(), SINGLE)
    except (SafetensorError, OSError) as error:
        raise BadInputError(_damage(single, "the header", error)) from error


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file beside the index."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{index}: not a safetensors index ({error}); copy or download it again") from error
    if not isinstance(files, dict):
        raise BadInputError(f"{index}: not a safetensors index (weight_map is a {type(files).__name__}); copy it again")
    for name, file in files.items():
        if not isinstance(file, str) or file != Path(file).name:
            raise BadInputError(
                f"{index}: not a safetensors index (`{name}` lies in {file!r}, which names no file here)"
            )
    return files


def _damage(path: Path, what: str, error: Exception) -> str:
    size = path.stat().st_size if path.exists() else 0
    return f"{path}: cannot read {what}: {error}; the file has {size} bytes, {_expected_bytes(path)}; copy it again"


def _expected_bytes(path: Path) -> str:
    """What the file's own header promises, when the header can still be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError):
        return "and its header is damaged"
    return f"its header promises {8 + length + end}"


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one step. Raises OSError with the system's number, as a full disk does elsewhere."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # of a name that no process on any node uses
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)
        temporary.replace(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """sha256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claim(storage: Path, quantize_key: str) -> Iterator[None]:
    """The right to make a checkpoint, waited for: two sweeps over one storage may want the same one.

    A lock of the operating system and not a file that is created, because it ends with the process that holds it,
    however that ends; on a file system without locks the driver refuses to start. Raises FileNotFoundError where there
    is no storage.
    """
    with locked(claim_file(storage, quantize_key)):
        yield


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest, or null where there is no finished checkpoint; one that cannot be read finishes nothing."""
    try:
        return from_json(Manifest, (directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def damage(directory: Path, manifest: Manifest) -> str | None:
    """Which file is missing or not what the manifest says, or null where every one is intact."""
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.exists():
            return f"{path} is missing"
        if (found := sha256(path)) != expected:
            return f"{path} has {path.stat().st_size} bytes of sha256 {found[:16]}, the manifest says {expected[:16]}"
    return None


def commit(partial: Path, final: Path, manifest: Manifest) -> None:
    """Manifest last, then rename. An older directory of the same key (damaged, or it would have been reused) goes."""
    replace(partial / MANIFEST, to_json(manifest))
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)


def write_index(directory: Path, files: Mapping[str, str]) -> None:
    """The index of a sharded checkpoint: tensor name -> file."""
    size = sum((directory / f).stat().st_size for f in set(files.values()))
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}, indent=1)
    replace(directory / INDEX, text + "\n")
