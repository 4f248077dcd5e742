"""Experts: the library's own numbers, and what becomes of those that few calibration tokens reach."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from conf.schema import AwqScale, BlockTune, LearnedClip, SearchClip, UniformScheme
from tests.workers.arch.tiny import dense, made, request, stream_of, write
from workers.api import LayerReport, QuantizeRequest
from workers.checkpoint import SINGLE, CheckpointReader
from workers.coverage import calibrated, cover
from workers.errors import BadInputError, NumericalError
from workers.experts import Expert, Experts
from workers.layout import checkpoint_directory
from workers.statistics import GroupStatistics

W4 = UniformScheme(bits=4)
UNUSED = 2  # the expert that no token reaches


def fused() -> MixtralExperts:
    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    experts = MixtralExperts(config)
    torch.manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    return experts


def apart(whole: MixtralExperts) -> Experts:
    experts = Experts.like(whole)
    for number, expert in enumerate(experts):
        assert isinstance(expert, Expert)
        gate, up = whole.gate_up_proj.data[number].chunk(2)
        for linear, weight in ((expert.gate_proj, gate), (expert.up_proj, up), (expert.down_proj, whole.down_proj)):
            linear.weight.data = weight.clone() if weight.dim() == 2 else weight.data[number].clone()
    return experts


@pytest.mark.parametrize("sees_all", [False, True])
def test_experts_apart_are_the_library_s_and_gradients_reach_those_with_tokens(sees_all: bool) -> None:
    whole = fused()
    experts = apart(whole)
    experts.sees_all = sees_all
    hidden = torch.randn(9, 16)
    chosen = torch.randint(0, 3, (9, 1)) + torch.tensor([[0, 1]])
    chosen[chosen == 3] = 0
    weights = torch.rand(9, 2)
    output = experts(hidden, chosen, weights)
    expected = whole(hidden, chosen, weights)
    assert (output - expected).abs().max() < 1e-6 * expected.abs().max()
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in experts.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.partition(".")[0] for name in gradients} == {"0", "1", "2"} and len(gradients) == 9


def test_experts_in_one_tensor_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = write("mixtral", tmp_path / "model")
    tensors = load_file(model / SINGLE)
    save_file({**tensors, "model.layers.0.mlp.experts.down_proj": torch.zeros(4, 64, 48)}, model / SINGLE)
    with pytest.raises(BadInputError, match=r"`model.layers.0.mlp.experts.down_proj`: .*save_original_format=True"):
        stream_of("mixtral", model)


def write_lopsided(directory: Path) -> Path:
    """A Mixtral in whose second block scores are 2, 1, 0, -1, -2 times one number: two never take the middle."""
    model = write("mixtral", directory, num_local_experts=5)
    tensors = load_file(model / SINGLE)
    gate = tensors["model.layers.1.block_sparse_moe.gate.weight"]
    gate.copy_(gate[0] * torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])[:, None])
    save_file(tensors, model / SINGLE, {"format": "pt"})
    return model


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lopsided(tmp_path_factory.mktemp("model") / "model")


def reports(asked: QuantizeRequest, experts: str = "blend") -> list[LayerReport]:
    return made(replace(asked, calibration=replace(asked.calibration, experts=experts)))[0].layer_reports


def of_unused(found: list[LayerReport]) -> list[LayerReport]:
    return [r for r in found if r.block == 1 and r.linear.startswith(f"mlp.experts.{UNUSED}.")]


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("gptq", {}),
    "awq": ("rtn", {"scale": AwqScale(grid=2), "clip": SearchClip()}),
    "quip": ("quip", {}),
    "omniquant": ("rtn", {"clip": LearnedClip(), "tune": BlockTune(learns=["clip"], epochs=1)}),
}


@pytest.mark.parametrize("method", METHODS)
def test_17_an_expert_without_tokens_is_quantized_degraded_and_not_zeroed(
    method: str, lopsided: Path, tmp_path: Path
) -> None:
    name, slots = METHODS[method]
    found = of_unused(reports(request("mixtral", lopsided, tmp_path, name, W4, **slots)))
    assert len(found) == 3 and all(r.num_tokens == 0 and not r.unchanged for r in found)
    assert all(r.degraded is not None and "token" in r.degraded for r in found)
    stored = [f"model.layers.1.block_sparse_moe.experts.{UNUSED}.{w}.weight" for w in ("w1", "w2", "w3")]
    now = CheckpointReader(dense(checkpoint_directory(tmp_path, "key"), tmp_path / "dense")).read(stored)
    before = CheckpointReader(lopsided).read(stored)
    assert all((now[n] - before[n]).norm() < 0.5 * before[n].norm() for n in stored)


def test_17_without_a_policy_an_expert_without_tokens_fails_by_name(lopsided: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"model.layers.1.mlp.experts.2.gate_proj: .*no calibration token"):
        reports(request("mixtral", lopsided, tmp_path, "gptq", W4), "own")


def test_17_nearest_is_rounding_to_nearest_and_all_lacks_nothing(lopsided: Path, tmp_path: Path) -> None:
    plain = reports(request("mixtral", lopsided, tmp_path / "rtn", "rtn", W4))
    nearest = reports(request("mixtral", lopsided, tmp_path / "nearest", "gptq", W4), "nearest")
    assert all("white" in (r.degraded or "") for r in of_unused(nearest))
    for one, other in zip(("rtn", "nearest"), (plain, nearest), strict=True):
        assert len(of_unused(other)) == 3, one
    codes = [packed_codes(tmp_path / half) for half in ("rtn", "nearest")]
    assert all(torch.equal(codes[0][name], codes[1][name]) for name in codes[0])
    everything = reports(request("mixtral", lopsided, tmp_path / "all", "gptq", W4), "all")
    assert not any(r.degraded for r in everything)
    assert {r.num_tokens for r in everything} == {8 * 64}


def packed_codes(storage: Path) -> dict[str, Tensor]:
    """Of the unused expert."""
    reader = CheckpointReader(checkpoint_directory(storage, "key"))
    prefix = f"model.layers.1.block_sparse_moe.experts.{UNUSED}."
    return reader.read([n for n in reader.names(prefix) if n.endswith("packed")])


@pytest.mark.parametrize("sees_all", [False, True])
def test_of_an_expert_that_sees_a_part_more_is_kept_and_of_one_that_sees_all_no_more(
    sees_all: bool, tmp_path: Path
) -> None:
    stream = stream_of("mixtral", write("mixtral", tmp_path / "model"))
    groups = stream.groups(0)
    batches, kwargs = stream.first_inputs(torch.randint(0, 128, (1, 80), generator=torch.Generator().manual_seed(0)))
    with stream.block(0) as block, calibrated(block, "all" if sees_all else "own"):
        statistics = GroupStatistics(block, groups, sample_every=8, sees_all=sees_all)
        with statistics.watching():
            stream.run(block, batches, kwargs)
    sums = [statistics.sums[name] for name in statistics.families["experts.*.gate_up"]]
    every = 8 if sees_all else 8 // len(sums)
    kept = [sum(map(len, one.sample)) for one in sums]
    assert kept == [math.ceil(one.num_tokens / every) for one in sums] and sum(kept) >= 40


def test_the_blend_is_the_mean_over_own_tokens_and_as_many_of_all_as_there_are_inputs(
    lopsided: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = stream_of("mixtral", lopsided)
    groups = stream.groups(0)
    tokens = torch.randint(0, 128, (1, 30), generator=torch.Generator().manual_seed(0))
    batches, kwargs = stream.first_inputs(tokens)
    with stream.block(0) as block, (statistics := GroupStatistics(block, groups, sample_every=1)).watching():
        stream.run(block, batches, kwargs)
    family = statistics.families["experts.*.gate_up"]
    sums = [statistics.sums[name] for name in family]
    counts = [one.num_tokens for one in sums]
    assert sum(counts) == 2 * 30 and max(counts) < 64  # each token goes to two, and none has as many as inputs
    grams = [one.gram.clone() for one in sums if one.gram is not None]
    with caplog.at_level(logging.INFO):
        cover(statistics, "blend", "block 0")
    assert "60 in all" in caplog.text and all(str(count) in caplog.text for count in counts)
    pooled = torch.stack(grams).sum(0) / 60
    for name, gram, count in zip(family, grams, counts, strict=True):
        expected = (gram + 64 * pooled) / (count + 64)
        taken = statistics.take(name)
        assert taken.hessian is not None and taken.num_tokens == count
        torch.testing.assert_close(taken.hessian, expected, rtol=1e-4, atol=1e-5)
        assert taken.degraded == f"{count} tokens for 64 inputs, which are blended with those of all experts"
