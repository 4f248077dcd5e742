"""What stays at more bits: OWQ's columns and PB-LLM's entries."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conf.schema import (
    ColumnsKeep,
    GptqRound,
    KroneckerIncohere,
    LdlqRound,
    MaskKeep,
    MethodConf,
    MixedScheme,
    NearestRound,
    NoKeep,
    UniformScheme,
)
from workers.methods.accounting import bits_per_weight
from workers.methods.factor import damp
from workers.methods.keep.columns import KeptColumns
from workers.methods.keep.mask import MaskedParams
from workers.methods.linear import quantize_linear
from workers.methods.statistics import Statistics

SCHEME = UniformScheme(bits=2, scale_dtype="float32")
OWQ = MethodConf(name="owq", category="compensation", keep=ColumnsKeep(extra_bits=3.0), round=GptqRound())
PB_LLM = MethodConf(name="pb_llm", category="compensation", keep=MaskKeep(), round=GptqRound())


def _problem(seed: int = 0, rows: int = 16, columns: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(10 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64).half().double()
    return weight, inputs.mT @ inputs / len(inputs)


# --- columns ---------------------------------------------------------------------------------------------------------


def test_15_no_kept_column_is_gptq() -> None:
    weight, hessian = _problem()
    none = replace(OWQ, keep=ColumnsKeep(extra_bits=0.0))
    kept = quantize_linear(weight, Statistics(hessian), none, SCHEME)
    plain = quantize_linear(weight, Statistics(hessian), replace(OWQ, keep=NoKeep()), SCHEME)
    assert torch.equal(kept.codes, plain.codes)
    assert kept.outcome.degraded == "no column of 24 fits method.keep.extra_bits=0"


def test_15_keeping_every_column_leaves_the_weight_unchanged() -> None:
    weight, hessian = _problem()
    every = replace(OWQ, keep=ColumnsKeep(extra_bits=14.0))
    assert torch.equal(quantize_linear(weight, Statistics(hessian), every, SCHEME).dense.double(), weight)


def test_kept_columns_are_the_most_sensitive_and_hold_the_best_values_for_the_others_errors() -> None:
    weight, hessian = _problem()
    quantized = quantize_linear(weight, Statistics(hessian), OWQ, SCHEME)
    params = quantized.params
    assert isinstance(params, KeptColumns) and len(params.columns) == round(24 * 3 / 14)
    error = quantized.dense.double() - weight
    gradient = (error @ damp(hessian, 0.0))[:, params.columns]
    reference = (error.abs() @ hessian.abs())[:, params.columns]
    assert (gradient.abs() / reference).max() < 0.02  # zero but for the damping of 1 % and float16


def test_columns_kept_last_are_gptq_on_reordered_columns() -> None:
    """The Schur complement's factor is the leading block of the whole factor with the kept columns last."""
    weight, hessian = _problem()
    kept = quantize_linear(weight, Statistics(hessian), replace(OWQ, round=GptqRound(damping=0.0)), SCHEME).params
    assert isinstance(kept, KeptColumns)
    rest = [j for j in range(24) if j not in kept.columns.tolist()]
    block = hessian[kept.columns][:, kept.columns]
    block = block + 0.01 * block.diagonal().mean() * torch.eye(len(block))
    whole = hessian.clone()
    whole[kept.columns[:, None], kept.columns] = block
    inverse = torch.linalg.inv(whole)[rest][:, rest]
    method = replace(OWQ, keep=NoKeep(), round=GptqRound(damping=0.0))
    alone = quantize_linear(weight[:, rest], Statistics(torch.linalg.inv(inverse)), method, SCHEME)
    owq = quantize_linear(weight, Statistics(hessian), replace(OWQ, round=GptqRound(damping=0.0)), SCHEME)
    assert torch.equal(owq.codes, alone.codes)


def test_kept_columns_lower_the_loss() -> None:
    weight, hessian = _problem()
    hessian[3] *= 30  # one channel of large activations
    hessian[:, 3] *= 30
    losses = [
        quantize_linear(weight, Statistics(hessian), replace(OWQ, keep=ColumnsKeep(bits)), SCHEME).outcome.proxy_loss
        for bits in (0.0, 1.0, 3.0)
    ]
    assert losses[0] is not None and losses[1] is not None and losses[2] is not None
    assert losses[0] > losses[1] > losses[2]


def test_kept_columns_go_with_any_rounding_and_basis() -> None:
    weight, hessian = _problem()
    for rounding in (NearestRound(), LdlqRound()):
        method = replace(OWQ, round=rounding, incohere=KroneckerIncohere())
        quantized = quantize_linear(weight, Statistics(hessian), method, SCHEME, seed=1)
        assert quantized.outcome.applied.startswith("incohere=kronecker keep=columns clip=minmax round=")
        assert torch.isfinite(quantized.dense).all()


def test_kept_columns_cost_their_bits_and_their_numbers() -> None:
    keep = replace(OWQ, keep=ColumnsKeep(extra_bits=0.1))
    kept = round(4096 * 0.1 / 14)
    codes, grids, columns = 2 * 4096 * (4096 - kept), 4096 * (16 + 2), kept * 16 * (4096 + 1)
    assert bits_per_weight(keep, UniformScheme(bits=2), 4096, 4096) == (codes + grids + columns) / 4096**2


# --- mask ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saliency", ["hessian", "magnitude"])
def test_entries_of_a_row_have_two_levels_but_for_the_salient_ones(saliency: str) -> None:
    weight, hessian = _problem()
    method = replace(PB_LLM, keep=MaskKeep(saliency=saliency))
    quantized = quantize_linear(weight, Statistics(hessian), method, MixedScheme(bits=2))
    params = quantized.params
    assert isinstance(params, MaskedParams)
    assert int(params.mask.sum()) == round(weight.numel() / 7)
    dense = quantized.dense
    for row, mask in zip(dense, params.mask, strict=True):
        assert len(row[~mask].unique()) <= 2
    if saliency == "magnitude":
        assert weight.abs()[params.mask].min() >= weight.abs()[~params.mask].max()


def test_masked_rounding_to_nearest_is_sign_and_eight_bits() -> None:
    weight, hessian = _problem()
    method = replace(PB_LLM, round=NearestRound())
    quantized = quantize_linear(weight, Statistics(hessian), method, MixedScheme(bits=2))
    mask = quantized.params.mask if isinstance(quantized.params, MaskedParams) else None
    assert mask is not None
    dense = quantized.dense.double()
    for row, found, kept in zip(weight, dense, mask, strict=True):
        low = row[~kept]
        expected = low.mean() + (low - low.mean()).abs().mean() * (low - low.mean()).sign()
        torch.testing.assert_close(found[~kept], expected, rtol=2e-3, atol=2e-3)  # float16 scale and zero point
        step = (row[kept].clamp(min=0).max() - row[kept].clamp(max=0).min()) / 255
        assert (found[kept] - row[kept]).abs().max() <= 0.51 * step


def test_compensation_lowers_the_masked_loss() -> None:
    weight, hessian = _problem()
    nearest = quantize_linear(weight, Statistics(hessian), replace(PB_LLM, round=NearestRound()), MixedScheme(bits=2))
    gptq = quantize_linear(weight, Statistics(hessian), PB_LLM, MixedScheme(bits=2))
    assert gptq.outcome.proxy_loss is not None and nearest.outcome.proxy_loss is not None
    assert gptq.outcome.proxy_loss < nearest.outcome.proxy_loss


def test_mask_and_both_kinds_of_grid_are_counted() -> None:
    bits = bits_per_weight(PB_LLM, MixedScheme(bits=2), 700, 4096)
    assert bits == pytest.approx(2 + 1 + (16 + 16 + 16 + 8) / 4096, abs=1e-9)
