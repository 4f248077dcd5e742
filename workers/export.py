"""Packed checkpoints: what config.json says of them, and their way back to an ordinary directory.

compressed-tensors' format where it has words for the layout, so that other tools read it; else config.json names
`ptq-bench` as the method, and no other tool misreads it.
Dense: weights multiplied out in the engine's dtype; a temporary form, made for the engine and thrown away.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from conf.schema import IncohereConf, KeepConf, SchemeConf, UniformScheme
from workers.checkpoint import CheckpointReader, save_tensors, write_index
from workers.methods.linear import restored
from workers.methods.registry import SCHEMES, STAGES
from workers.model_parts import folders, in_parts
from workers.packing import PACKED, Layout, unpack

Conf = TypeVar("Conf", SchemeConf, IncohereConf, KeepConf)

OWN_METHOD = "ptq-bench"
BESIDE = (  # files of the tokenizer and, where there is one, the processor of images
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
    "*processor_config.json",
    "chat_template.json",
)


def quantization_config(layout: Layout, ignore: list[str]) -> dict[str, Any]:
    """config.json's `quantization_config` for a packed checkpoint."""
    scheme = layout.scheme
    if not layout.is_common:
        return {
            "quant_method": OWN_METHOD,
            "format": "pack-quantized",
            "scheme": _tagged(scheme),
            "mid_rise": layout.mid_rise,
            "incohere": _tagged(layout.incohere),
            "keep": _tagged(layout.keep),
            "ignore": ignore,
        }
    assert isinstance(scheme, UniformScheme)
    weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric}
    weights |= {"strategy": "group", "group_size": scheme.group_size} if scheme.group_size else {"strategy": "channel"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ignore,
    }


def stored_layout(directory: Path) -> Layout | None:
    """The layout a packed directory's config.json declares; null for an unquantized model."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if config is None:
        return None
    if config["quant_method"] == OWN_METHOD:
        return Layout(
            _untagged(config["scheme"], SchemeConf),
            config["mid_rise"],
            _untagged(config["incohere"], IncohereConf),
            _untagged(config["keep"], KeepConf),
        )
    weights = config["config_groups"]["group_0"]["weights"]
    return Layout(
        UniformScheme(bits=weights["num_bits"], group_size=weights.get("group_size"), symmetric=weights["symmetric"])
    )


def _tagged(conf: object) -> dict[str, Any]:
    return {"kind": type(conf).__name__, **vars(conf)}


def _untagged(stored: Mapping[str, Any], base: type[Conf]) -> Conf:
    kinds = {cls.__name__: cls for cls in (*STAGES, *SCHEMES) if issubclass(cls, base)}
    return kinds[stored["kind"]](**{name: value for name, value in stored.items() if name != "kind"})


def copy_beside(
    source: Path, destination: Path, quantization: dict[str, Any] | None, changes: Mapping[str, Any] | None = None
) -> None:
    """config.json (with the quantization it now has, and other entries that change) and the files BESIDE it."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | dict(changes or {})
    config.pop("quantization_config", None)
    if quantization is not None:
        config["quantization_config"] = quantization
    (destination / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for folder in folders(source):
        for path in sorted(path for pattern in BESIDE for path in folder.glob(pattern)):
            shutil.copyfile(path, destination / path.name)


@contextmanager
def ordinary(directory: Path) -> Iterator[Path]:
    """A checkpoint as an ordinary Hugging Face directory: itself, or for one in parts another with links to them."""
    if not in_parts(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="ptq-bench-") as temporary:
        _link_parts(directory, Path(temporary))
        yield Path(temporary)


def _link_parts(source: Path, destination: Path) -> None:
    files = {name: file.replace("/", "-") for name, file in CheckpointReader(source).files.items()}
    for folder in folders(source)[1:]:
        for path in folder.glob("*.safetensors"):
            (destination / f"{folder.name}-{path.name}").symlink_to(path.resolve())
    write_index(destination, files)
    copy_beside(source, destination, None)


def write_dense(packed: Path, destination: Path, dtype: str) -> None:
    """A packed checkpoint multiplied out in `dtype`, shard by shard, as an ordinary Hugging Face directory."""
    layout = stored_layout(packed)
    assert layout is not None, f"{packed} is not packed"
    destination.mkdir(parents=True)
    reader = CheckpointReader(packed)
    files: dict[str, str] = {}
    for file in sorted(set(reader.files.values())):
        stored = reader.read([name for name, f in reader.files.items() if f == file])
        dense = _dense_tensors(stored, layout, getattr(torch, dtype))
        save_tensors(destination / file, dense, metadata={"format": "pt"})
        files |= dict.fromkeys(dense, file)
    write_index(destination, files)
    copy_beside(packed, destination, None)


def _dense_tensors(stored: Mapping[str, torch.Tensor], layout: Layout, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    linears = {name.removesuffix(f".{PACKED}") for name in stored if name.endswith(f".{PACKED}")}
    dense: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        linear, _, part = name.rpartition(".")
        if linear not in linears:
            dense[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        elif part == PACKED:
            parts = {n.removeprefix(f"{linear}."): t for n, t in stored.items() if n.startswith(f"{linear}.weight_")}
            dense[f"{linear}.weight"] = restored(*unpack(parts, layout)).to(dtype)
        elif not part.startswith("weight_"):
            dense[name] = tensor.to(dtype)
    return dense
