"""Every kind of method on every architecture: a checkpoint that its class loads, with the numbers of its report."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from conf import register
from conf.schema import BlockTune, LearnedClip, MethodConf, NearestRound, RootConf, UniformScheme
from tests.workers.arch.tiny import (
    OF_EVERY_KIND,
    SHIPPED,
    dense,
    load,
    log_probabilities,
    made,
    model_of,
    request,
    stream_of,
    windows_of,
    write,
)
from workers.checkpoint import CheckpointReader
from workers.export import stored_layout
from workers.packing import PACKED
from workers.tuning import TunedBlock

METHODS = ["rtn", "gptq", "awq", "quip", "omniquant", "hqq", "quip_gptq", "quarot_gptq", "awq_gptq"]
ELSEWHERE = ["awq", "omniquant"]  # what depends on the architecture most; GPTQ and QuaRot have tests of their own
CASES = [(name, method) for name in OF_EVERY_KIND for method in (METHODS if name == "mixtral" else ELSEWHERE)]


@cache
def cell(method: str) -> RootConf:
    """What `method=<method> bits=4` composes to, its training made short."""
    with register.hydra_context():
        root = register.compose([f"method={method}", "scheme.bits=4"]).root
    if isinstance(root.method.tune, BlockTune):
        root.method.tune.epochs = 1
    if root.scheme.group_size:
        root.scheme.group_size = 8
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(name, tmp_path_factory.mktemp("model") / "model") for name in OF_EVERY_KIND}


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_checkpoint_is_loaded_by_its_class_and_scores_as_its_manifest_says(
    name: str, method: str, models: dict[str, Path], tmp_path: Path
) -> None:
    conf = cell(method)
    asked = replace(request(name, models[name], tmp_path, "rtn", UniformScheme(bits=4)), method=conf.method)
    manifest, packed = made(replace(asked, scheme=conf.scheme))
    groups = [(i, group) for i in range(2) for group in stream_of(name, models[name]).groups(i)]
    assert [(r.block, r.linear) for r in manifest.layer_reports] == [(i, n) for i, g in groups for n in g.linears]
    assert [r.linear for r in manifest.layer_reports if r.degraded] == []
    loaded = load(name, dense(packed, tmp_path / "dense"))
    found = log_probabilities(loaded, torch.tensor(manifest.canary.tokens))
    torch.testing.assert_close(found, torch.tensor(manifest.canary.quantized), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", [*OF_EVERY_KIND, *SHIPPED.values()])
def test_13_every_learned_end_of_every_linear_gets_a_gradient(name: str, tmp_path: Path) -> None:
    stream = stream_of(name, model_of(name, tmp_path / "model"))
    batches, kwargs = stream.first_inputs(torch.from_numpy(windows_of(name, 4, 32)))
    method = MethodConf("m", "optimization", clip=LearnedClip(), tune=BlockTune(["clip"]), round=NearestRound())
    for index in range(stream.num_blocks):
        linears = [linear for group in stream.groups(index) for linear in group.linears]
        with stream.block(index) as block:
            targets = list(batches)
            stream.run(block, batches, kwargs, targets.__setitem__)
            tuned = TunedBlock(block, linears, method, UniformScheme(bits=3), [], stream.head_dim)
            output = tuned.run(tuned.state(), batches[0], kwargs)
            torch.nn.functional.mse_loss(output, targets[0]).backward()
            learned = tuned.parameters()
            assert {linear for linear, _ in learned} == set(linears)
            assert all(p.tensor.grad is not None and p.tensor.grad.any() for p in learned.values())


def test_what_is_skipped_keeps_its_bits_and_counts_with_them(models: dict[str, Path], tmp_path: Path) -> None:
    skip = ["x_proj", "dt_proj"]
    asked = request("mamba", models["mamba"], tmp_path, "gptq", UniformScheme(bits=4), skip=skip)
    manifest, packed = made(asked)
    kept = {r.linear: r for r in manifest.layer_reports if r.applied == "kept by method.skip"}
    assert set(kept) == {"mixer.x_proj", "mixer.dt_proj"}
    assert {r.bits_per_weight for r in kept.values()} == {32}  # of a float32 file
    weights = sum(r.num_weights for r in manifest.layer_reports)
    expected = sum(r.bits_per_weight * r.num_weights for r in manifest.layer_reports) / weights
    assert manifest.bits_per_weight == pytest.approx(expected) and expected > 8
    before, after = CheckpointReader(models["mamba"]), CheckpointReader(packed)
    same = [n for n in before.files if any(name in n for name in skip)]
    old, new = before.read(same), after.read(same)
    assert len(same) == 6 and all(torch.equal(old[n], new[n]) for n in same)
    assert {n.split(".")[-2] for n in after.files if n.endswith(PACKED)} == {"in_proj", "out_proj"}
    layout = stored_layout(packed)
    assert layout is not None and layout.is_common


def test_scales_fold_into_what_is_skipped_too(models: dict[str, Path], tmp_path: Path) -> None:
    conf = cell("awq")
    slots = {"scale": conf.method.scale, "clip": conf.method.clip, "skip": ["x_proj"]}
    asked = request("mamba", models["mamba"], tmp_path, "rtn", UniformScheme(bits=4), **slots)
    manifest, packed = made(asked)
    found = log_probabilities(load("mamba", dense(packed, tmp_path / "dense")), torch.tensor(manifest.canary.tokens))
    torch.testing.assert_close(found, torch.tensor(manifest.canary.quantized), rtol=0, atol=2e-3)
    assert {r.linear for r in manifest.layer_reports if r.applied.startswith("scale=awq")} == {
        "mixer.in_proj",
        "mixer.dt_proj",
    }
