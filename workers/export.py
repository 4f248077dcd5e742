"""Quantized linears to stored tensors and back.

Packed: compressed-tensors' `pack-quantized` layout, so that other tools read it: codes shifted to signed and packed
into int32 (32 // bits codes per word: 3 bits take 3.2 on disk), scale [out, groups], zero point packed along rows.
Where that format has no words for a linear (a rotated basis, a grid without a zero), the codes lie in the same words,
with what else is needed beside them, and config.json names `ptq-bench` as the method: no other tool misreads it.
Dense: weights multiplied out in the engine's dtype; a temporary form, made for the engine and thrown away.
"""

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from conf.schema import IncohereConf, MethodConf, NoIncohere, RmsClip, UniformScheme
from workers.checkpoint import CheckpointReader, save_tensors, write_index
from workers.methods.grid import QuantParams
from workers.methods.incohere.basis import Basis
from workers.methods.linear import QuantizedLinear, restored
from workers.methods.registry import STAGES, stage_module

OWN_METHOD = "ptq-bench"
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


@dataclass(frozen=True)
class Layout:
    """How the linears of a packed checkpoint are stored. mid_rise: zero lies half way between two levels."""

    scheme: UniformScheme
    mid_rise: bool = False
    incohere: IncohereConf = field(default_factory=NoIncohere)

    @property
    def is_common(self) -> bool:
        """Whether compressed-tensors has words for it."""
        return not self.mid_rise and isinstance(self.incohere, NoIncohere)


def layout_of(method: MethodConf, scheme: UniformScheme) -> Layout:
    """The layout that a method's linears need."""
    return Layout(scheme, isinstance(method.clip, RmsClip), method.incohere)


def pack(linear: QuantizedLinear, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of one packed linear, names relative to the linear."""
    params, scheme = linear.params, layout.scheme
    offset = 1 << (params.bits - 1)
    scale = params.scale.to(getattr(torch, scheme.scale_dtype))
    tensors = {
        PACKED: pack_to_int32((linear.codes.to(torch.int16) - offset).to(torch.int8), params.bits),
        "weight_scale": scale[:1, :1].clone() if _one_scale(layout) else scale,
        "weight_shape": torch.tensor(linear.codes.shape),
    }
    if not scheme.symmetric and not layout.mid_rise:
        zero_point = (params.zero_point - offset).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero_point, params.bits, packed_dim=0)
    if linear.basis is not None:
        tensors["weight_seed"] = torch.tensor(linear.basis.seed)
        if linear.basis.rescale is not None:
            tensors["weight_rescale"] = linear.basis.rescale.half()
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def unpack(tensors: Mapping[str, torch.Tensor], layout: Layout) -> tuple[torch.Tensor, QuantParams, Basis | None]:
    """The inverse of `pack`: codes [out, in] uint8, their grid, and the basis they are in."""
    scheme = layout.scheme
    offset = 1 << (scheme.bits - 1)
    shape = torch.Size(tensors["weight_shape"].tolist())
    codes = (unpack_from_int32(tensors[PACKED], scheme.bits, shape).to(torch.int16) + offset).to(torch.uint8)
    scale = tensors["weight_scale"].float()
    if _one_scale(layout):
        scale = scale.expand(shape[0], 1)
    if layout.mid_rise:
        zero_point = torch.full(scale.shape, (2**scheme.bits - 1) / 2)
    elif scheme.symmetric:
        zero_point = torch.full(scale.shape, float(offset))
    else:
        packed = tensors["weight_zero_point"]
        zero_point = unpack_from_int32(packed, scheme.bits, scale.shape, packed_dim=0).float() + offset
    params = QuantParams(scale=scale, zero_point=zero_point, bits=scheme.bits, group_size=scheme.group_size)
    return codes, params, _basis(tensors, layout.incohere, shape)


def _one_scale(layout: Layout) -> bool:
    return layout.mid_rise and layout.scheme.group_size is None


def _basis(tensors: Mapping[str, torch.Tensor], incohere: IncohereConf, shape: torch.Size) -> Basis | None:
    if isinstance(incohere, NoIncohere):
        return None
    module = importlib.import_module(stage_module(incohere))
    rescale = tensors["weight_rescale"].float() if "weight_rescale" in tensors else None
    basis: Basis = module.draw_basis(shape[0], shape[1], incohere, int(tensors["weight_seed"]), rescale)
    return basis


def quantization_config(layout: Layout, ignore: list[str]) -> dict[str, Any]:
    """config.json's `quantization_config` for a packed checkpoint."""
    scheme = layout.scheme
    if not layout.is_common:
        return {
            "quant_method": OWN_METHOD,
            "format": "pack-quantized",
            "scheme": vars(scheme),
            "mid_rise": layout.mid_rise,
            "incohere": {"kind": type(layout.incohere).__name__, **vars(layout.incohere)},
            "ignore": ignore,
        }
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
        incohere = dict(config["incohere"])
        kinds = {cls.__name__: cls for cls in STAGES if issubclass(cls, IncohereConf)}
        return Layout(UniformScheme(**config["scheme"]), config["mid_rise"], kinds[incohere.pop("kind")](**incohere))
    weights = config["config_groups"]["group_0"]["weights"]
    return Layout(
        UniformScheme(bits=weights["num_bits"], group_size=weights.get("group_size"), symmetric=weights["symmetric"])
    )


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
