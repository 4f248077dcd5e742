"""One real layer, rounded by the original implementations: proxy losses, scales and zero points.

Losses are compared, not codes: in float32 the thread count alone changes some of them. Scales are float32 there.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conf.schema import (
    ClipConf,
    GptqRound,
    KroneckerIncohere,
    LdlqRound,
    MethodConf,
    MinmaxClip,
    MseClip,
    NearestRound,
    RmsClip,
    RoundConf,
    UniformScheme,
)
from workers.methods.clip import minmax, rms
from workers.methods.grid import QuantParams, dequantize
from workers.methods.incohere.basis import Basis
from workers.methods.incohere.rescale import rescale_of
from workers.methods.linear import QuantizedLinear, quantize_linear
from workers.methods.loss import proxy_loss
from workers.methods.round import ldlq
from workers.methods.statistics import Statistics

pytestmark = pytest.mark.shared

BITS = [4, 3, 2]
PER_ROW = UniformScheme(scale_dtype="float32")
GROUPS = replace(PER_ROW, group_size=64)
IN_ORDER = GptqRound(act_order=False)
CASES: dict[str, tuple[RoundConf, ClipConf, UniformScheme]] = {
    "plain": (IN_ORDER, MinmaxClip(), PER_ROW),
    "act": (GptqRound(), MinmaxClip(), PER_ROW),
    "sym": (IN_ORDER, MinmaxClip(), replace(PER_ROW, symmetric=True)),
    "mse": (IN_ORDER, MseClip(), PER_ROW),
    "g64_act_static": (GptqRound(), MinmaxClip(), GROUPS),
    "g64": (GptqRound(act_order=False, static_groups=False), MinmaxClip(), GROUPS),
}


@pytest.fixture(scope="module")
def layer(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "o_proj.base.safetensors")


@pytest.fixture(scope="module")
def losses(shared: Path) -> dict[str, float]:
    index: dict[str, dict[str, dict[str, float]]] = json.loads((shared / "golden" / "index.json").read_text())
    return index["o_proj"]["proxy_loss"]


def _quantize(layer: dict[str, Tensor], case: str, bits: int) -> QuantizedLinear:
    stage, clip, scheme = CASES[case]
    method = MethodConf(name="gptq", category="compensation", clip=clip, round=stage)
    return quantize_linear(layer["W"], Statistics(layer["H"]), method, replace(scheme, bits=bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", ["plain", "act", "sym", "mse", "g64_act_static"])
def test_gptq_loses_what_the_original_loses(
    layer: dict[str, Tensor], losses: dict[str, float], case: str, bits: int
) -> None:
    assert _quantize(layer, case, bits).outcome.proxy_loss == pytest.approx(losses[f"gptq.w{bits}.{case}"], rel=0.01)


@pytest.mark.parametrize("bits", BITS)
def test_item_23_dynamic_groups_lose_at_most_one_percent_more(
    layer: dict[str, Tensor], losses: dict[str, float], bits: int
) -> None:
    loss = _quantize(layer, "g64", bits).outcome.proxy_loss

    assert loss is not None
    assert loss <= 1.01 * losses[f"gptq.w{bits}.g64"]


@pytest.mark.parametrize("bits", BITS)
def test_rtn_has_the_original_scales_zero_points_and_weights(
    shared: Path, layer: dict[str, Tensor], losses: dict[str, float], bits: int
) -> None:
    golden = load_file(shared / "golden" / "o_proj.gptq.safetensors")
    rows = len(golden[f"rtn.w{bits}"])
    method = MethodConf(name="rtn", category="baseline", round=NearestRound())

    quantized = quantize_linear(layer["W"], Statistics(layer["H"]), method, replace(PER_ROW, bits=bits))

    assert isinstance(quantized.params, QuantParams)
    assert torch.equal(quantized.params.scale[:rows], golden[f"scale.w{bits}"])
    assert torch.equal(quantized.params.zero_point[:rows], golden[f"zero.w{bits}"])
    assert torch.equal(quantized.dense[:rows], golden[f"rtn.w{bits}"])
    assert quantized.outcome.proxy_loss == pytest.approx(losses[f"rtn.w{bits}"], rel=1e-6)


# --- QuIP ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    """An orthogonal matrix that was written out."""

    matrix: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrix.to(vectors).mT

    def inverse(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrix.to(vectors)


def _clamped_first(weight: Tensor, hessian: Tensor, fit: Callable[[Tensor], QuantParams]) -> Tensor:
    """LDLQ as the original has it: targets are cut off at the grid's ends before the first column, and that is lost."""
    params = fit(weight)
    ends = dequantize(torch.tensor([[0, params.max_code]]).expand(len(weight), 2).to(torch.uint8), params, weight.dtype)
    cut = weight.clamp(ends[:, :1], ends[:, 1:])
    conf = LdlqRound(greedy_passes=0)
    codes = ldlq.round_weight(cut, Statistics(hessian), conf, PER_ROW, lambda _: params).codes
    return dequantize(codes, params, weight.dtype)


@pytest.mark.parametrize("bits", BITS)
def test_item_12_ldlq_loses_what_the_original_loses_only_where_targets_are_cut_off_first(
    layer: dict[str, Tensor], losses: dict[str, float], bits: int
) -> None:
    weight, hessian = layer["W"].double(), layer["H"].double()
    scheme = replace(PER_ROW, bits=bits)
    cut = _clamped_first(weight, hessian, lambda w: minmax.fit_grid(w, MinmaxClip(), scheme))
    assert proxy_loss(weight - cut, hessian) == pytest.approx(losses[f"ldlq.w{bits}"], rel=0.01)

    method = MethodConf(name="ldlq", category="compensation", round=LdlqRound(greedy_passes=0))
    loss = quantize_linear(layer["W"], Statistics(layer["H"]), method, scheme).outcome.proxy_loss
    assert loss is not None and loss < losses[f"ldlq.w{bits}"]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("factors", ["e0", "e1"])
def test_item_12_quip_loses_what_the_original_loses_in_its_basis_with_targets_cut_off_first(
    shared: Path, layer: dict[str, Tensor], losses: dict[str, float], factors: str, bits: int
) -> None:
    golden = load_file(shared / "golden" / "o_proj.quip.safetensors")
    weight, hessian = layer["W"].double(), layer["H"].double()
    u, v, rescale = (golden[f"quip.{factors}.{name}"] for name in ("U", "V", "scaleWH"))
    basis = Basis(Dense(u), Dense(v), rescale, damping=0.01, seed=0)
    assert torch.allclose(rescale_of(weight, hessian) / rescale, (rescale_of(weight, hessian) / rescale)[0], rtol=2e-3)
    scheme = replace(PER_ROW, bits=bits)
    turned = _clamped_first(
        basis.of_weight(weight), basis.of_hessian(hessian), lambda w: rms.fit_grid(w, RmsClip(), scheme)
    )
    assert proxy_loss(weight - basis.back(turned), hessian) == pytest.approx(
        losses[f"quip.w{bits}.{factors}"], rel=0.01
    )


@pytest.mark.parametrize("bits", BITS)
def test_quip_over_ten_seeds_spreads_little_and_loses_less_than_the_original(
    layer: dict[str, Tensor], losses: dict[str, float], bits: int
) -> None:
    method = MethodConf(
        name="quip", category="rotation", incohere=KroneckerIncohere(), clip=RmsClip(), round=LdlqRound()
    )
    scheme = replace(PER_ROW, bits=bits)
    outcomes = [quantize_linear(layer["W"], Statistics(layer["H"]), method, scheme, seed).outcome for seed in range(10)]
    found = [outcome.proxy_loss or 0.0 for outcome in outcomes]
    mean, deviation = statistics.mean(found), statistics.stdev(found)
    assert deviation < 0.1 * mean
    assert mean + 2 * deviation < losses[f"quip.w{bits}.e1"]
