"""Quantized linears to stored tensors and back.

Packed: compressed-tensors' `pack-quantized` layout, so that other tools read it: codes shifted to signed and packed
into int32 (32 // bits codes per word: 3 bits take 3.2 on disk), scale [out, groups], zero point packed along rows.
Dense: weights multiplied out in the engine's dtype; a temporary form, made for the engine and thrown away.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from conf.schema import UniformScheme
from workers.checkpoint import CheckpointReader, save_tensors, write_index
from workers.methods.grid import QuantParams, dequantize

PACKED = "weight_packed"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
)


TensorMap = Mapping[str, torch.Tensor]


def pack(codes: torch.Tensor, params: QuantParams, scheme: UniformScheme) -> dict[str, torch.Tensor]:
    """codes [out, in] uint8 and their grid as the tensors of one packed linear, names relative to the linear."""
    bits, offset = params.bits, 1 << (params.bits - 1)
    tensors = {
        PACKED: pack_to_int32((codes.to(torch.int16) - offset).to(torch.int8), bits),
        "weight_scale": params.scale.to(getattr(torch, scheme.scale_dtype)),
        "weight_shape": torch.tensor(codes.shape),
    }
    if not scheme.symmetric:
        zero_point = (params.zero_point - offset).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero_point, bits, packed_dim=0)
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def unpack(tensors: Mapping[str, torch.Tensor], scheme: UniformScheme) -> tuple[torch.Tensor, QuantParams]:
    """The inverse of `pack`: codes [out, in] uint8 and their grid."""
    bits, offset = scheme.bits, 1 << (scheme.bits - 1)
    scale = tensors["weight_scale"].float()
    shape = torch.Size(tensors["weight_shape"].tolist())
    codes = (unpack_from_int32(tensors[PACKED], bits, shape).to(torch.int16) + offset).to(torch.uint8)
    if scheme.symmetric:
        zero_point = torch.full(scale.shape, offset, dtype=torch.int32)
    else:
        zero_point = unpack_from_int32(tensors["weight_zero_point"], bits, scale.shape, packed_dim=0).int() + offset
    return codes, QuantParams(scale=scale, zero_point=zero_point, bits=bits, group_size=scheme.group_size)


def quantization_config(scheme: UniformScheme, ignore: list[str]) -> dict[str, Any]:
    """config.json's `quantization_config` for a packed checkpoint."""
    weights: dict[str, Any] = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric}
    weights |= {"strategy": "group", "group_size": scheme.group_size} if scheme.group_size else {"strategy": "channel"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ignore,
    }


def scheme_of(directory: Path) -> UniformScheme | None:
    """The scheme a packed directory's config.json declares; null for an unquantized model."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if config is None:
        return None
    weights = config["config_groups"]["group_0"]["weights"]
    return UniformScheme(bits=weights["num_bits"], group_size=weights.get("group_size"), symmetric=weights["symmetric"])


def copy_beside(source: Path, destination: Path, quantization: dict[str, Any] | None) -> None:
    """config.json (with the quantization it now has) and the tokenizer's files."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    if quantization is not None:
        config["quantization_config"] = quantization
    (destination / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, destination / path.name)


def write_dense(packed: Path, destination: Path, dtype: str) -> None:
    """A packed checkpoint multiplied out in `dtype`, shard by shard, as an ordinary Hugging Face directory."""
    scheme = scheme_of(packed)
    assert scheme is not None, f"{packed} is not packed"
    destination.mkdir(parents=True)
    reader = CheckpointReader(packed)
    files: dict[str, str] = {}
    for file in sorted(set(reader.files.values())):
        stored = reader.read([name for name, f in reader.files.items() if f == file])
        dense = _dense_tensors(stored, scheme, getattr(torch, dtype))
        save_tensors(destination / file, dense, metadata={"format": "pt"})
        files |= dict.fromkeys(dense, file)
    write_index(destination, files)
    copy_beside(packed, destination, None)


def _dense_tensors(
    stored: Mapping[str, torch.Tensor], scheme: UniformScheme, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    linears = {name.removesuffix(f".{PACKED}") for name in stored if name.endswith(f".{PACKED}")}
    dense: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        linear, _, part = name.rpartition(".")
        if linear not in linears:
            dense[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        elif part == PACKED:
            parts = {n.removeprefix(f"{linear}."): t for n, t in stored.items() if n.startswith(f"{linear}.weight_")}
            dense[f"{linear}.weight"] = dequantize(*unpack(parts, scheme)).to(dtype)
        elif not part.startswith("weight_"):
            dense[name] = tensor.to(dtype)
    return dense
