"""One quantized linear to stored tensors and back.

Codes lie packed in int32 as compressed-tensors' `pack-quantized` has them (codes shifted to signed, 32 // bits to a
word: 3 bits take 3.2 on disk), with scale [out, groups] and the zero point packed along rows. Where that format has no
words for a linear (a rotated basis, a grid without a zero, a real zero point, kept columns or entries), what else is
needed lies beside them, and the checkpoint says so (`Layout.is_common`). Codes of vectors lie as they are, in int16 and
uint8 [out, in / 8], with one scale.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from torch import Tensor

from conf.schema import (
    ColumnsKeep,
    IncohereConf,
    KeepConf,
    MaskKeep,
    MethodConf,
    NoIncohere,
    NoKeep,
    RealZeroScheme,
    RmsClip,
    SchemeConf,
    UniformScheme,
    VectorCodebookScheme,
)
from workers.methods import codebook
from workers.methods.codebook import CodebookParams
from workers.methods.grid import GridScheme, Params, QuantParams, is_symmetric, scale_dtype
from workers.methods.incohere.basis import Basis
from workers.methods.keep.columns import KeptColumns
from workers.methods.keep.mask import MaskedParams
from workers.methods.linear import QuantizedLinear
from workers.methods.registry import stage_module
from workers.methods.rotate.hadamard import intermediate_basis

PACKED = "weight_packed"
_STAGE_NAMES = (PACKED, "weight_packed_residual")


@dataclass(frozen=True)
class Layout:
    """How the linears of a packed checkpoint are stored. mid_rise: zero lies half way between two levels.

    incohere: of the linears that have a seed; the others are in their own basis.
    """

    scheme: SchemeConf
    mid_rise: bool = False
    incohere: IncohereConf = field(default_factory=NoIncohere)
    keep: KeepConf = field(default_factory=NoKeep)

    @property
    def is_common(self) -> bool:
        """Whether compressed-tensors has words for it."""
        plain = isinstance(self.incohere, NoIncohere) and isinstance(self.keep, NoKeep)
        return plain and not self.mid_rise and isinstance(self.scheme, UniformScheme)


def layout_of(method: MethodConf, scheme: SchemeConf) -> Layout:
    """The layout that a method's linears need."""
    mid_rise = isinstance(method.clip, RmsClip) and isinstance(scheme, UniformScheme)
    return Layout(scheme, mid_rise, intermediate_basis(method), method.keep)


def pack(linear: QuantizedLinear, layout: Layout) -> dict[str, Tensor]:
    """The tensors of one packed linear, names relative to the linear."""
    tensors = _pack_params(linear.codes, linear.params, layout)
    if linear.basis is not None:
        tensors["weight_seed"] = torch.tensor(linear.basis.seed)
        if linear.basis.rescale is not None:
            tensors["weight_rescale"] = linear.basis.rescale.half()
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Params, Basis | None]:
    """The inverse of `pack`: codes, what gives them their values, and the basis they are in."""
    shape = torch.Size(tensors["weight_shape"].tolist())
    codes, params = _unpack_params(tensors, layout, shape)
    return codes, params, _basis(tensors, layout.incohere, shape)


def _pack_params(codes: Tensor, params: Params, layout: Layout) -> dict[str, Tensor]:
    if isinstance(params, KeptColumns):
        rest = _pack_params(codes, params.rest, layout)
        shape = torch.tensor([len(codes), codes.shape[1] + len(params.columns)])
        return rest | {
            "weight_shape": shape,
            "weight_kept_columns": params.columns.int(),
            "weight_kept": params.weight,
        }
    if isinstance(params, MaskedParams):
        return _pack_masked(codes, params)
    if isinstance(params, CodebookParams):
        return _pack_vectors(codes, params)
    assert isinstance(params, QuantParams)
    return _pack_uniform(codes, params, layout)


def _unpack_params(tensors: Mapping[str, Tensor], layout: Layout, shape: torch.Size) -> tuple[Tensor, Params]:
    if isinstance(layout.keep, ColumnsKeep) and "weight_kept" in tensors:
        kept = tensors["weight_kept"]
        rest_shape = torch.Size((shape[0], shape[1] - kept.shape[1]))
        codes, rest = _unpack_uniform(tensors, layout, rest_shape)
        return codes, KeptColumns(rest, tensors["weight_kept_columns"].long(), kept)
    if isinstance(layout.keep, MaskKeep):
        return _unpack_masked(tensors, layout.keep, shape)
    if isinstance(layout.scheme, VectorCodebookScheme):
        return _unpack_vectors(tensors, layout.scheme.bits)
    return _unpack_uniform(tensors, layout, shape)


def _pack_uniform(codes: Tensor, params: QuantParams, layout: Layout) -> dict[str, Tensor]:
    scheme = layout.scheme
    assert isinstance(scheme, GridScheme)
    scale = params.scale.to(scale_dtype(scheme))
    tensors = {
        PACKED: _to_words(codes, params.bits),
        "weight_shape": torch.tensor(codes.shape),
        "weight_scale": scale[:1, :1].clone() if _one_scale(layout) else scale,
    }
    if isinstance(scheme, RealZeroScheme):
        tensors["weight_zero_point"] = params.zero_point.half()
    elif not is_symmetric(scheme) and not layout.mid_rise:
        tensors["weight_zero_point"] = _to_words(params.zero_point, params.bits, packed_dim=0)
    return tensors


def _unpack_uniform(tensors: Mapping[str, Tensor], layout: Layout, shape: torch.Size) -> tuple[Tensor, QuantParams]:
    scheme = layout.scheme
    assert isinstance(scheme, GridScheme)
    scale = tensors["weight_scale"].float()
    if _one_scale(layout):
        scale = scale.expand(shape[0], 1)
    if layout.mid_rise:
        zero_point = torch.full(scale.shape, (2**scheme.bits - 1) / 2)
    elif isinstance(scheme, RealZeroScheme):
        zero_point = tensors["weight_zero_point"].float()
    elif is_symmetric(scheme):
        zero_point = torch.full(scale.shape, float(2 ** (scheme.bits - 1)))
    else:
        zero_point = _from_words(tensors["weight_zero_point"], scheme.bits, scale.shape, packed_dim=0).float()
    params = QuantParams(scale=scale, zero_point=zero_point, bits=scheme.bits, group_size=scheme.group_size)
    return _from_words(tensors[PACKED], scheme.bits, shape), params


def _pack_masked(codes: Tensor, params: MaskedParams) -> dict[str, Tensor]:
    """One bit for each entry, what the salient ones have instead in row-major order, and the mask."""
    return {
        PACKED: _to_words(codes.masked_fill(params.mask, 0), 1),
        "weight_shape": torch.tensor(codes.shape),
        "weight_mask": _to_words(params.mask, 1),
        "weight_salient": codes[params.mask],
        "weight_mean": params.mean.half(),
        "weight_spread": params.spread.half(),
        "weight_scale": params.high.scale.half(),
        "weight_zero_point": params.high.zero_point.to(torch.uint8),
    }


def _unpack_masked(tensors: Mapping[str, Tensor], keep: MaskKeep, shape: torch.Size) -> tuple[Tensor, MaskedParams]:
    codes, mask = _from_words(tensors[PACKED], 1, shape), _from_words(tensors["weight_mask"], 1, shape).bool()
    codes[mask] = tensors["weight_salient"]
    high = QuantParams(tensors["weight_scale"].float(), tensors["weight_zero_point"].float(), keep.bits, None)
    return codes, MaskedParams(mask, tensors["weight_mean"].float(), tensors["weight_spread"].float(), high)


def _pack_vectors(codes: Tensor, params: CodebookParams) -> dict[str, Tensor]:
    """Each stage's codes [out, in / 8]: 16 bits from -2^15 up, or 8 bits from 0."""
    stages = codebook.STAGES[params.bits]
    tensors = {
        name: code.to(torch.uint8) if stage.bits == 8 else (code - (1 << 15)).to(torch.int16)
        for name, stage, code in zip(_STAGE_NAMES, stages, codes.unbind(-1), strict=False)
    }
    shape = torch.tensor([codes.shape[0], codes.shape[1] * params.vector_size])
    return tensors | {"weight_shape": shape, "weight_scale": params.scale.half()}


def _unpack_vectors(tensors: Mapping[str, Tensor], bits: int) -> tuple[Tensor, CodebookParams]:
    codes = [tensors[name].int() for name in _STAGE_NAMES[: len(codebook.STAGES[bits])]]
    codes = [
        code + (1 << 15) if stage.bits == 16 else code for stage, code in zip(codebook.STAGES[bits], codes, strict=True)
    ]
    return torch.stack(codes, -1), CodebookParams(tensors["weight_scale"].float(), bits)


def _to_words(codes: Tensor, bits: int, packed_dim: int = 1) -> Tensor:
    """Codes 0..2^bits - 1 of any dtype -> int32."""
    words: Tensor = pack_to_int32((codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8), bits, packed_dim)
    return words


def _from_words(words: Tensor, bits: int, shape: torch.Size, packed_dim: int = 1) -> Tensor:
    """int32 -> codes 0..2^bits - 1, uint8."""
    signed: Tensor = unpack_from_int32(words, bits, shape, packed_dim)
    return (signed.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


def _one_scale(layout: Layout) -> bool:
    return layout.mid_rise and layout.scheme.group_size is None


def _basis(tensors: Mapping[str, Tensor], incohere: IncohereConf, shape: torch.Size) -> Basis | None:
    if "weight_seed" not in tensors:
        return None
    module = importlib.import_module(stage_module(incohere))
    rescale = tensors["weight_rescale"].float() if "weight_rescale" in tensors else None
    basis: Basis = module.draw_basis(shape[0], shape[1], incohere, int(tensors["weight_seed"]), rescale)
    return basis
