"""Known answers of every architecture: block by block it is the whole model, and only its linears change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conf.schema import NumericsConf, UniformScheme
from tests.workers.arch.tiny import (
    MODELS,
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
from tests.workers.tiny_models import canary_of
from tests.workers.tiny_requests import random_windows
from workers.checkpoint import CheckpointReader
from workers.export import ordinary
from workers.packing import PACKED
from workers.zoo import MINIS

W4 = UniformScheme(bits=4)
TOKENS = torch.from_numpy(random_windows(3, 40))


def in_blocks(name: str, model: Path, tokens: Tensor) -> Tensor:
    """Log-probabilities by the block stream."""
    stream = stream_of(name, model)
    batches, kwargs = stream.first_inputs(tokens)
    for index in range(stream.num_blocks):
        with stream.block(index) as block:
            stream.run(block, batches, kwargs, batches.__setitem__)
    return stream.log_probabilities(batches, tokens)


@pytest.mark.parametrize("name", [*MODELS, *MINIS])
def test_16_block_by_block_without_quantization_is_the_whole_model(name: str, tmp_path: Path) -> None:
    model, tokens = model_of(name, tmp_path / "model"), torch.from_numpy(windows_of(name, 3, 40))
    expected = log_probabilities(load(name, model), tokens)
    assert (in_blocks(name, model, tokens) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", [*OF_EVERY_KIND, *SHIPPED.values()])
def test_17_18_every_selected_linear_saw_tokens_and_nothing_else_changed(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "model")
    manifest, packed = made(request(name, model, tmp_path, "gptq", W4))
    reports = manifest.layer_reports
    stream = stream_of(name, model)
    selected = [(i, linear) for i in range(stream.num_blocks) for group in stream.groups(i) for linear in group.linears]
    assert [(r.block, r.linear) for r in reports] == selected
    assert all(r.num_tokens > 0 and not r.unchanged for r in reports)
    before, after = CheckpointReader(model), CheckpointReader(packed)
    stored = {f"{stream.architecture.blocks}.{i}.{linear}.weight" for i, linear in selected}
    quantized = {stream.tensors.stored(n) for n in stored}
    assert {f"{n.removesuffix('.weight')}.{PACKED}" for n in quantized} == {n for n in after.files if PACKED in n}
    kept = [n for n in before.files if n not in quantized]
    old, new = before.read(kept), after.read(kept)
    assert kept and all(torch.equal(old[n], new[n]) for n in kept)


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_the_dense_checkpoint_has_the_names_of_the_source_and_the_numbers_of_the_manifest(
    name: str, tmp_path: Path
) -> None:
    model = write(name, tmp_path / "model")
    manifest, packed = made(request(name, model, tmp_path, "gptq", W4))
    multiplied = dense(packed, tmp_path / "dense")
    assert set(CheckpointReader(multiplied).files) == set(CheckpointReader(model).files)
    canary = manifest.canary
    tokens = torch.tensor(canary.tokens)
    for directory, expected in ((model, canary.reference), (multiplied, canary.quantized)):
        found = log_probabilities(load(name, directory), tokens)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_the_packed_checkpoint_names_what_is_not_quantized(name: str, tmp_path: Path) -> None:
    """As the files call it, and as Transformers does: a tool that took a router for quantized would read noise."""
    model = write(name, tmp_path / "model")
    _, packed = made(request(name, model, tmp_path, "rtn", W4))
    ignored = set(json.loads((packed / "config.json").read_text())["quantization_config"]["ignore"])
    files = CheckpointReader(packed).files
    shapes = {n: tensor.dim() for n, tensor in CheckpointReader(packed).read(files).items() if n.endswith(".weight")}
    matrices = {n.removesuffix(".weight") for n, dims in shapes.items() if dims == 2}
    assert {n for n in matrices if not n.endswith(("embed_tokens", "embeddings"))} <= ignored
    assert not {n for n in ignored if f"{n}.{PACKED}" in files}
    assert {"lm_head"} <= ignored


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_calibration_in_sixteen_bits_runs_through_every_block(name: str, tmp_path: Path) -> None:
    model = write(name, tmp_path / "model")
    asked = request(name, model, tmp_path, "gptq", W4)
    manifest, _ = made(replace(asked, numerics=NumericsConf("bfloat16", "cpu")))
    exact, _ = made(replace(asked, quantize_key="exact"))
    assert not any(r.degraded for r in manifest.layer_reports)
    difference = torch.tensor(manifest.canary.reference) - torch.tensor(exact.canary.reference)
    assert 0 < difference.abs().mean() < 0.2


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_the_transformers_evaluator_scores_it(name: str, tmp_path: Path) -> None:
    model = write(name, tmp_path / "model")
    expected = log_probabilities(load(name, model), TOKENS)
    with ordinary(model) as whole:
        found = torch.tensor(canary_of(whole, TOKENS.tolist()).reference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
