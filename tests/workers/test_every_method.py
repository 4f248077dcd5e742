"""Every method of conf/method, from its YAML to a checkpoint of a tiny LLaMA: what holds for all of them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from conf import register
from conf.schema import BlockTune, ColumnsKeep, RootConf
from tests.workers.tiny_requests import request_for, write_llama
from workers.api import Manifest, QuantizeRequest
from workers.checkpoint import CheckpointReader
from workers.export import write_dense
from workers.layout import checkpoint_directory
from workers.methods.refusals import refusals
from workers.methods.registry import missing_schemes, missing_stages
from workers.pipeline import quantize

NAMES = sorted(
    path.stem for path in Path(register.__file__).parent.glob("method/*.yaml") if path.stem != "slots_schema"
)
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 1}


@cache
def cell(name: str, bits: int) -> RootConf:
    """What `method=<name> bits=<bits>` composes to, made small enough for this model."""
    overrides = [f"method={name}", *([] if name == "none" else [f"scheme.bits={bits}"])]
    with register.hydra_context():
        root = register.compose(overrides).root
    method, scheme = root.method, root.scheme
    if isinstance(method.tune, BlockTune):
        method.tune.epochs, method.tune.iterations = min(method.tune.epochs, 2), min(method.tune.iterations, 4)
    if isinstance(method.keep, ColumnsKeep):
        method.keep.extra_bits = 0.5
    if scheme.group_size:
        scheme.group_size = 32
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model"), **SIZES)


def request_of(name: str, model: Path, storage: Path, bits: int = 3, seed: int = 0) -> QuantizeRequest:
    conf = cell(name, bits)
    return replace(request_for(model, storage, "rtn"), method=conf.method, scheme=conf.scheme, seed=seed)


def made(request: QuantizeRequest) -> tuple[Manifest, Path]:
    manifest = quantize(request)
    assert manifest is not None
    return manifest, checkpoint_directory(Path(request.storage), request.quantize_key)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_built_and_refuses_nothing_of_its_own(name: str) -> None:
    conf = cell(name, 2)
    assert missing_stages(conf.method) + missing_schemes(conf.scheme) + refusals(conf.method, conf.scheme) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_every_method_makes_a_checkpoint_whose_numbers_are_those_of_its_report(
    name: str, model: Path, tmp_path: Path
) -> None:
    manifest, packed = made(request_of(name, model, tmp_path))
    assert [r.linear for r in manifest.layer_reports if r.degraded] == []
    assert {(r.block, r.linear) for r in manifest.layer_reports} == {
        (block, f"{part}.{linear}_proj")
        for block in range(2)
        for part, linears in {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}.items()
        for linear in linears
    }
    assert all(torch.isfinite(torch.tensor(r.bits_per_weight)) for r in manifest.layer_reports)
    assert manifest.bits_per_weight >= cell(name, 3).scheme.bits
    write_dense(packed, tmp_path / "dense", "float32")
    torch.testing.assert_close(
        _canary(tmp_path / "dense", manifest), torch.tensor(manifest.canary.quantized), rtol=0, atol=2e-3
    )


# QuaRot's rotation turns the embedding and the head.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("none", "quarot", "quarot_gptq")])
def test_18_what_is_not_a_linear_of_a_block_keeps_its_bits(name: str, model: Path, tmp_path: Path) -> None:
    _, packed = made(request_of(name, model, tmp_path))
    before, after = CheckpointReader(model), CheckpointReader(packed)
    outside = [n for n in before.files if not n.startswith("model.layers.")]
    assert len(outside) == 3
    old, new = before.read(outside), after.read(outside)
    assert all(torch.equal(old[n], new[n]) for n in outside)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_23_the_same_seed_gives_the_same_files(name: str, model: Path, tmp_path: Path) -> None:
    first, second = (made(request_of(name, model, tmp_path / half, seed=5))[0] for half in ("first", "second"))
    weights = [f for f in first.files if f.endswith(".safetensors")]
    assert weights and all(first.files[f] == second.files[f] for f in weights)


def _canary(directory: Path, manifest: Manifest) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.tensor(manifest.canary.tokens)
    with torch.no_grad():
        logits = loaded(tokens).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(2, tokens[:, 1:, None]).squeeze(2)
