"""Folds of every architecture leave its function as it was: rotations, scales, and the router's choice of experts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conf.schema import AwqScale, HadamardRotate, UniformScheme
from tests.workers.arch.tiny import (
    ARCHITECTURE,
    OF_EVERY_KIND,
    load,
    log_probabilities,
    made,
    model_of,
    request,
    stream_of,
    windows_of,
    write,
)
from tests.workers.arch.tiny import dense as multiplied
from workers.arch import foldable
from workers.rotation import Rotation
from workers.scaling import BlockScaling, fold
from workers.statistics import GroupStatistics
from workers.stream import BlockStream
from workers.zoo import MINIS

W3, W8 = UniformScheme(bits=3), UniformScheme(bits=8, scale_dtype="float32")
WITH_EXPERTS = ["mixtral", "deepseek_moe"]
SUBJECTS = [*OF_EVERY_KIND, *MINIS]


def tokens_of(name: str) -> Tensor:
    return torch.from_numpy(windows_of(name, 3, 40))


class Block:
    """The last block of a model, which has experts where any has, with the first block's inputs."""

    def __init__(self, name: str, directory: Path) -> None:
        self.stream: BlockStream = stream_of(name, model_of(name, directory))
        batches, self.kwargs = self.stream.first_inputs(tokens_of(name))
        last = self.stream.num_blocks - 1
        self.inputs = torch.cat(batches)
        self.groups = self.stream.groups(last)
        with self.stream.block(last) as block:
            self.module = copy.deepcopy(block)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        found: list[Tensor] = []
        self.stream.run(self.module, [self.inputs], self.kwargs, lambda _, output: found.append(output))
        return found[0]

    def routing(self, path: str) -> Tensor:
        """The experts of each token, [tokens, k]."""
        seen: list[Tensor] = []
        handle = self.module.get_submodule(path).register_forward_hook(lambda _, __, found: seen.append(found[2]))
        self.outputs()
        handle.remove()
        return seen[0]


def scale_for(block: Block, linear: str) -> Tensor:
    module = block.module.get_submodule(linear)
    assert isinstance(module, nn.Linear)
    scale = torch.exp(torch.randn(module.in_features, generator=torch.Generator().manual_seed(1)))
    if linear == "self_attn.o_proj":  # query heads that read one value head share its scale
        values = block.module.get_submodule("self_attn.v_proj")
        assert isinstance(values, nn.Linear)
        dim = block.stream.head_dim
        heads = scale.reshape(values.out_features // dim, -1, dim)
        scale = heads[:, :1].expand_as(heads).reshape(-1)
    return scale


@pytest.mark.parametrize("name", SUBJECTS)
def test_11_12_any_scales_folded_leave_outputs_and_routing_as_they_were(name: str, tmp_path: Path) -> None:
    block = Block(name, tmp_path / "model")
    before = block.outputs()
    routed = block.routing("mlp.gate") if ARCHITECTURE[name] in WITH_EXPERTS else None
    folds = foldable(block.groups)
    for group in folds:
        fold(block.module, group, scale_for(block, group.linears[0]), block.stream.head_dim)
    assert torch.allclose(block.outputs(), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    if routed is not None:
        assert torch.equal(block.routing("mlp.gate"), routed)
        assert [group.linears for group in folds if group.kept == ("mlp.gate",)] == [
            tuple(n for g in block.groups if g.prev_op == "post_attention_layernorm" for n in g.linears)
        ]


@pytest.mark.parametrize("name", [*WITH_EXPERTS, "mamba"])
def test_11_the_search_never_loses_more_than_rounding(name: str, tmp_path: Path) -> None:
    block = Block(name, tmp_path / "model")
    statistics = GroupStatistics(block.module, block.groups, sample_every=None)
    scaling = BlockScaling(block.module, block.groups, AwqScale(grid=4), W3, block.stream.head_dim, len(block.inputs))
    with scaling.watching(), statistics.watching():
        block.outputs()
    before = block.outputs()
    found = scaling.search(statistics)
    assert len(found) == len(foldable(block.groups))
    losses = [(report.loss, report.loss_unscaled) for _, _, report in found]
    assert all(loss is not None and plain is not None and loss <= plain for loss, plain in losses)
    for group, scale, _ in found:
        fold(block.module, group, scale, block.stream.head_dim)
    assert torch.allclose(block.outputs(), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("name", SUBJECTS)
def test_10_a_rotated_model_computes_what_it_did(name: str, tmp_path: Path) -> None:
    model, tokens = model_of(name, tmp_path / "model"), tokens_of(name)
    stream = stream_of(name, model)
    hidden_size = stream.config.get_text_config().hidden_size
    rotation = Rotation(HadamardRotate(), stream.architecture, hidden_size, stream.head_dim, seed=3)
    batches, kwargs = stream.first_inputs(tokens)
    batches = [rotation.states(batch) for batch in batches]
    for index in range(stream.num_blocks):
        with stream.block(index) as block:
            before = {name: parameter.clone() for name, parameter in block.named_parameters()}
            rotation.turn_block(block, stream.groups(index), f"{stream.architecture.blocks}.{index}")
            first = f"{stream.groups(index)[0].linears[0]}.weight"
            assert not torch.equal(block.get_parameter(first), before[first])
            stream.run(block, batches, kwargs, batches.__setitem__)
    found = stream.log_probabilities(batches, tokens, rotation.turn_head)
    expected = log_probabilities(load(name, model), tokens)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_10_a_rotated_checkpoint_is_an_ordinary_one_of_the_same_names(name: str, tmp_path: Path) -> None:
    model = write(name, tmp_path / "model")
    manifest, packed = made(request(name, model, tmp_path, "quarot", W8))
    loaded: Any = load(name, multiplied(packed, tmp_path / "dense"))
    found = log_probabilities(loaded, torch.tensor(manifest.canary.tokens))
    torch.testing.assert_close(found, torch.tensor(manifest.canary.quantized), rtol=1e-4, atol=1e-4)
    reference = torch.tensor(manifest.canary.reference)
    assert 0 < (found - reference).abs().mean() < 0.05 * reference.abs().mean()
