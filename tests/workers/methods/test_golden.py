"""One real layer, rounded by the original implementations: proxy losses, scales and zero points.

Losses are compared, not codes: in float32 the thread count alone changes some of them. Scales are float32 there.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conf.schema import ClipConf, GptqRound, MethodConf, MinmaxClip, MseClip, NearestRound, RoundConf, UniformScheme
from workers.methods.linear import QuantizedLinear, quantize_linear

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
    return quantize_linear(layer["W"], layer["H"], method, replace(scheme, bits=bits))


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

    quantized = quantize_linear(layer["W"], layer["H"], method, replace(PER_ROW, bits=bits))

    assert torch.equal(quantized.params.scale[:rows], golden[f"scale.w{bits}"])
    assert torch.equal(quantized.params.zero_point[:rows], golden[f"zero.w{bits}"].int())
    assert torch.equal(quantized.dequantize()[:rows], golden[f"rtn.w{bits}"])
    assert quantized.outcome.proxy_loss == pytest.approx(losses[f"rtn.w{bits}"], rel=1e-6)
