"""Scales folded into a real block change nothing; the search never does worse than rounding alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conf.schema import AwqScale, MinmaxClip, SmoothScale, UniformScheme
from tests.workers.tiny_requests import model_ref, random_windows, write_llama
from workers.arch import LinearGroup
from workers.arch.llama import LLAMA
from workers.methods.clip.minmax import fit_grid
from workers.methods.errors import MethodError
from workers.scaling import BlockScaling, Scaled, fold
from workers.statistics import GroupStatistics
from workers.stream import BlockStream

SIZES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
}
SCHEME = UniformScheme(bits=2, scale_dtype="float32")


class Block:
    """A block of a tiny model with its calibration inputs."""

    def __init__(self, directory: Path, **sizes: Any) -> None:
        self.stream = BlockStream(
            model_ref(write_llama(directory, **sizes)), directory, dtype=torch.float32, device=torch.device("cpu")
        )
        self.batches, self.kwargs = self.stream.first_inputs(torch.from_numpy(random_windows(4, 64)))
        with self.stream.block(1) as block:
            self.module = copy.deepcopy(block)
        generator = torch.Generator().manual_seed(0)  # channels as uneven as in a trained model
        for name in ("input_layernorm", "post_attention_layernorm"):
            gain = self.module.get_submodule(name).weight
            assert isinstance(gain, Tensor)
            gain.data *= torch.exp(torch.randn(len(gain), generator=generator))

    def outputs(self, module: nn.Module | None = None) -> Tensor:
        found: list[Tensor] = []
        self.stream.run(module or self.module, self.batches, self.kwargs, lambda _, output: found.append(output))
        return torch.cat(found)

    def scaling(self, conf: AwqScale | SmoothScale) -> tuple[BlockScaling, GroupStatistics]:
        """What has seen the calibration, and with it the statistics of the same."""
        windows = sum(map(len, self.batches))
        scaling = BlockScaling(self.module, LLAMA.groups, conf, SCHEME, self.stream.head_dim, windows)
        statistics = GroupStatistics(self.module, LLAMA.groups, sample_every=1)
        with scaling.watching(), statistics.watching():
            self.outputs()
        return scaling, statistics

    def fold(self, conf: AwqScale | SmoothScale) -> list[Scaled]:
        scaling, statistics = self.scaling(conf)
        found = scaling.search(statistics)
        for group, scale, _ in found:
            fold(self.module, group, scale, self.stream.head_dim)
        return [report for _, _, report in found]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("group", LLAMA.groups, ids=lambda g: g.name)
def test_11_any_scale_folded_leaves_the_outputs_as_they_were(group: LinearGroup, sizes: str, tmp_path: Path) -> None:
    block = Block(tmp_path / "model", **SIZES[sizes])
    before = block.outputs()
    linear = block.module.get_submodule(group.linears[0])
    assert isinstance(linear, nn.Linear)
    scale = torch.exp(torch.randn(linear.in_features, generator=torch.Generator().manual_seed(1)))
    if group.name == "o" and sizes == "grouped-query":  # query heads that read one value head share its scale
        scale = scale.reshape(2, 2, 16)[:, :1].expand(2, 2, 16).reshape(-1)
    weight = linear.weight.clone()
    fold(block.module, group, scale, block.stream.head_dim)
    assert torch.allclose(linear.weight, weight * scale)
    assert torch.allclose(block.outputs(), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("conf", [AwqScale(), SmoothScale()], ids=["awq", "smooth"])
@pytest.mark.parametrize("sizes", SIZES)
def test_11_all_folds_of_a_search_leave_the_outputs_as_they_were(
    sizes: str, conf: AwqScale | SmoothScale, tmp_path: Path
) -> None:
    block = Block(tmp_path / "model", **SIZES[sizes])
    before = block.outputs()
    scaled = block.fold(conf)
    assert [found.group for found in scaled] == ["qkv", "o", "gate_up", "down"]
    assert torch.allclose(block.outputs(), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


def test_11_the_search_never_loses_more_than_rounding_and_here_it_gains(tmp_path: Path) -> None:
    scaled = Block(tmp_path / "model").fold(AwqScale())
    losses = [(found.loss, found.loss_unscaled) for found in scaled]
    assert all(loss is not None and unscaled is not None and loss <= unscaled for loss, unscaled in losses)
    assert any(loss is not None and unscaled is not None and loss < 0.95 * unscaled for loss, unscaled in losses)


def test_11_a_search_with_one_candidate_is_rounding_alone(tmp_path: Path) -> None:
    block = Block(tmp_path / "model")
    before = {name: parameter.clone() for name, parameter in block.module.named_parameters()}
    block.fold(AwqScale(grid=1))
    assert all(torch.equal(parameter, before[name]) for name, parameter in block.module.named_parameters())


def test_grouped_query_folds_can_be_skipped(tmp_path: Path) -> None:
    block = Block(tmp_path / "model", **SIZES["grouped-query"])
    assert [found.group for found in block.fold(AwqScale(gqa="skip"))] == ["qkv", "gate_up", "down"]


@torch.no_grad()
@pytest.mark.parametrize("sizes", SIZES)
def test_the_loss_of_a_linear_needs_no_forward(sizes: str, tmp_path: Path) -> None:
    """tr(E X^T X E^T) is the mean squared change of its outputs, for any scale and with a bias too."""
    block = Block(tmp_path / "model", **SIZES[sizes])
    scaling, statistics = block.scaling(AwqScale())
    generator = torch.Generator().manual_seed(2)
    for group in LLAMA.groups[1::2]:  # o, down
        (name,) = group.linears
        linear = block.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        seen: list[Tensor] = []
        handle = linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        block.outputs()
        handle.remove()
        scale = torch.exp(torch.randn(linear.in_features, generator=generator))
        grid = fit_grid(linear.weight * scale, MinmaxClip(), SCHEME)
        rounded = grid.values(grid.nearest(linear.weight * scale)) / scale
        inputs = torch.cat(seen).double()
        change = torch.nn.functional.linear(inputs, (rounded - linear.weight).double())
        loss = scaling._loss_by_gram(linear, *statistics.gram(group.name))(scale)
        assert loss == pytest.approx(float(change.square().mean()), rel=1e-4)


def test_a_search_compares_on_as_many_windows_as_asked_for_evenly_spaced(tmp_path: Path) -> None:
    block = Block(tmp_path / "model")
    block.batches = [torch.cat([batch, -batch]) for batch in block.batches]
    windows = torch.cat(block.batches)
    block.batches = list(windows.split([3, 1, 4]))
    scaling, _ = block.scaling(AwqScale(num_windows=4))
    taken = torch.cat(scaling._seen["qkv"].windows)
    normed = block.module.get_submodule("input_layernorm")(windows)
    assert torch.equal(taken, normed[[0, 2, 4, 6]])
    assert not scaling._seen["o"].windows  # a linear is judged by its Hessian
    everything, _ = block.scaling(AwqScale(num_windows=100))
    assert len(torch.cat(everything._seen["qkv"].windows)) == len(windows)


@pytest.mark.parametrize("sizes", SIZES)
def test_statistics_follow_a_fold_as_if_they_were_taken_after_it(sizes: str, tmp_path: Path) -> None:
    block = Block(tmp_path / "model", **SIZES[sizes])
    scaling, before = block.scaling(AwqScale())
    for group, scale, _ in scaling.search(before):
        fold(block.module, group, scale, block.stream.head_dim)
        before.rescale(group, scale)
    _, after = block.scaling(AwqScale())
    for group in LLAMA.groups:
        kept, anew = before.take(group.name), after.take(group.name)
        for one, other in ((kept.hessian, anew.hessian), (kept.inputs, anew.inputs)):
            assert one is not None and other is not None
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_a_searched_block_is_as_it_was_until_the_fold(tmp_path: Path) -> None:
    """Every search sees the block without the scales of the others: candidates do not depend on their order."""
    block = Block(tmp_path / "model")
    scaling, statistics = block.scaling(AwqScale())
    with torch.no_grad():
        together = [scaling._search(group, statistics) for group in LLAMA.groups]
        alone = [scaling._search(group, statistics) for group in reversed(LLAMA.groups)]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(together, reversed(alone), strict=True))


def test_a_scale_that_takes_a_gain_out_of_range_is_refused_by_name(tmp_path: Path) -> None:
    block = Block(tmp_path / "model")
    with pytest.raises(MethodError, match=r"input_layernorm.weight: .*float32"):
        fold(block.module, LLAMA.groups[0], torch.full([64], torch.inf), block.stream.head_dim)
