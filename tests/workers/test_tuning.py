"""Training over a real block: what it finds is what the pipeline rounds to, and nothing of it happens in silence."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conf.schema import (
    BlockTune,
    ClipConf,
    GptqRound,
    LearnedClip,
    LearnedScale,
    MethodConf,
    MinmaxClip,
    NearestRound,
    RoundConf,
    ScaleConf,
    UniformScheme,
)
from tests.workers.tiny_requests import model_ref, quantized_linears, random_windows, request_for, write_llama
from workers.arch import LinearGroup
from workers.arch.llama import LLAMA
from workers.errors import NumericalError
from workers.layout import checkpoint_directory
from workers.methods.grid import dequantize
from workers.methods.linear import quantize_linear
from workers.methods.statistics import Statistics
from workers.methods.tune.loss import LOSSES, mse
from workers.pipeline import quantize
from workers.scaling import fold
from workers.stream import BlockStream
from workers.tuning import Samples, Tuned, TunedBlock, train

SCHEME = UniformScheme(bits=2, group_size=32)


def tuned(
    clip: ClipConf | None = None,
    *learns: str,
    scale: ScaleConf | None = None,
    stage: RoundConf | None = None,
    epochs: int = 3,
    **more: Any,
) -> MethodConf:
    """OmniQuant with a few epochs, unless another clip comes with what else is learned."""
    method = MethodConf("m", "optimization", clip=clip or LearnedClip(), round=stage or NearestRound())
    method.tune = BlockTune(learns=list(learns) or ["clip"], epochs=epochs, batch_size=2, **more)
    if scale is not None:
        method.scale = scale
    return method


DIRECT = LearnedClip(form="direct", init=1.0, learning_rate=None)
METHODS = {
    "omniquant": tuned(),
    "autoround": tuned(DIRECT, "clip", "rounding", optimizer="signsgd", epochs=0, iterations=10),
    "rounding alone": tuned(MinmaxClip(), "rounding", optimizer="signsgd"),
    "lrquant": tuned(None, "clip", "scale", scale=LearnedScale(init="log"), loss="mse_cosine"),
    "scale alone": tuned(MinmaxClip(), "scale", scale=LearnedScale(), aug_loss=True),
}


class Problem:
    """The second block of a tiny model, with inputs a little off the original ones, and what training needs of it."""

    def __init__(self, directory: Path, **sizes: Any) -> None:
        self.stream = BlockStream(
            model_ref(write_llama(directory, **sizes)), directory, dtype=torch.float32, device=torch.device("cpu")
        )
        batches, self.kwargs = self.stream.first_inputs(torch.from_numpy(random_windows(6, 32)))
        self.original = torch.cat(batches)
        self.inputs = self.original + 0.01 * torch.randn(
            self.original.shape, generator=torch.Generator().manual_seed(0)
        )
        with self.stream.block(1) as block:
            self.block = copy.deepcopy(block)
        self.samples = Samples.of([self.inputs], [self.run(self.original)], [])
        self.own = self.run(self.inputs)

    def run(self, hidden: Tensor) -> Tensor:
        found: list[Tensor] = []
        self.stream.run(self.block, [hidden], self.kwargs, lambda _, output: found.append(output))
        return found[0]

    def tuned_block(self, method: MethodConf, scheme: UniformScheme = SCHEME) -> TunedBlock:
        starts: list[tuple[LinearGroup, Tensor]] = []
        if isinstance(method.scale, LearnedScale):
            for seed, group in enumerate(LLAMA.groups):
                linear = self.block.get_submodule(group.linears[0])
                assert isinstance(linear, nn.Linear)
                noise = torch.randn(linear.in_features, generator=torch.Generator().manual_seed(seed))
                starts.append((group, torch.exp(0.3 * noise)))
        return TunedBlock(self.block, LLAMA.linears, method, scheme, starts, self.stream.head_dim)

    def train(self, method: MethodConf, samples: Samples | None = None, *, seed: int = 0) -> tuple[TunedBlock, Tuned]:
        assert isinstance(method.tune, BlockTune)
        block = self.tuned_block(method)
        samples = samples or replace(self.samples, own=list(self.own) if method.tune.aug_loss else [])
        return block, train(block, method.tune, samples, self.kwargs, seed=seed, where="block")

    @torch.no_grad()
    def loss(self, block: TunedBlock, method: MethodConf) -> float:
        """What training is to lower, over all windows."""
        assert isinstance(method.tune, BlockTune)
        output = block.run(block.state(), self.inputs, self.kwargs)
        loss = LOSSES[method.tune.loss](output, torch.stack(self.samples.targets))
        return float(loss + mse(output, self.own)) if method.tune.aug_loss else float(loss)


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    return Problem(tmp_path / "model")


GROUPED_QUERY = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}


@pytest.mark.parametrize("sizes", [{}, GROUPED_QUERY], ids=["multi-head", "grouped-query"])
@pytest.mark.parametrize("name", METHODS)
def test_baked_weights_are_those_of_the_training_forward(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    problem, method = Problem(tmp_path / "model", **sizes), METHODS[name]
    block, found = problem.train(method)
    state = block.state()
    forward = block.run(state, problem.inputs, problem.kwargs).detach()
    for group, scale in found.scales:
        fold(problem.block, group, scale, problem.stream.head_dim)
    for linear in LLAMA.linears:
        module = problem.block.get_submodule(linear)
        assert isinstance(module, nn.Linear)
        statistics = Statistics(learned=found.learned[linear])
        module.weight.data = quantize_linear(module.weight.data, statistics, method, SCHEME).dense
    for parameter, tensor in problem.block.named_parameters():
        assert torch.equal(tensor, state[parameter]), parameter
    assert torch.equal(problem.run(problem.inputs), forward)


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss(name: str, problem: Problem) -> None:
    before = problem.loss(problem.tuned_block(METHODS[name]), METHODS[name])
    block, found = problem.train(METHODS[name])
    assert found.words is not None and 0 < float(found.words.removeprefix("tune=block(").rstrip(")")) < 1
    assert problem.loss(block, METHODS[name]) < before
    assert {learned.degraded for learned in found.learned.values()} == {None}


def test_the_best_pass_is_kept(problem: Problem, caplog: pytest.LogCaptureFixture) -> None:
    """At a rate this high the loss goes up; what is handed over is never worse than the start."""
    method = tuned(LearnedClip(learning_rate=30.0))
    with caplog.at_level(logging.INFO):
        block, _ = problem.train(method)
    assert problem.loss(block, method) <= problem.loss(problem.tuned_block(method), method)
    assert len([record for record in caplog.records if "judged" in record.message]) == 3


def test_23_the_same_seed_finds_the_same(problem: Problem) -> None:
    first, again, other = (problem.train(METHODS["autoround"], seed=seed)[1].learned for seed in (0, 0, 1))
    for linear in LLAMA.linears:
        offsets = [found[linear].offset for found in (first, again, other)]
        assert offsets[0] is not None and offsets[1] is not None and offsets[2] is not None
        assert torch.equal(offsets[0], offsets[1]) and not torch.equal(offsets[0], offsets[2])


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["omniquant", "autoround"])
def test_13_a_linear_that_no_gradient_reaches_is_named(name: str, problem: Problem) -> None:
    """As where a fused kernel reads the original weights."""
    attention = problem.block.get_submodule("self_attn")
    weight = problem.block.get_parameter("self_attn.k_proj.weight").detach().clone()
    attention.k_proj.forward = lambda hidden: hidden @ weight.T  # type: ignore[union-attr]
    with pytest.raises(NumericalError, match="learned high") as caught:
        problem.train(METHODS[name])
    assert caught.value.layer == "block.self_attn.k_proj"


def broken(problem: Problem, *windows: int) -> Samples:
    """Targets so far off that the squares of these windows overflow."""
    targets = [target + 1e30 if i in windows else target for i, target in enumerate(problem.samples.targets)]
    return Samples(problem.samples.inputs, targets, [])


def test_22_a_loss_that_is_never_finite_leaves_the_initial_values_and_says_so(problem: Problem) -> None:
    method = METHODS["lrquant"]
    initial = problem.tuned_block(method)
    _, found = problem.train(method, broken(problem, 0, 1, 2, 3, 4, 5))
    for linear, learned in found.learned.items():
        expected = initial.linears[linear].learned()
        assert learned.low is not None and expected.low is not None and torch.equal(learned.low, expected.low)
        assert learned.degraded is not None and "not trained: the loss is not finite" in learned.degraded
    for (_, scale), (_, start) in zip(found.scales, initial.scales(), strict=True):
        assert torch.equal(scale, start)


def test_22_training_that_keeps_diverging_starts_anew_once_and_then_says_so(
    problem: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    """One window of six overflows: once in each of the first three passes, and again in those of the second try."""
    method = tuned(epochs=5)
    initial = problem.loss(problem.tuned_block(method), method)
    block, found = problem.train(method, broken(problem, 3))
    assert {learned.degraded for learned in found.learned.values()} == {
        "not trained: 6 steps had a loss or gradient that is not finite"
    }
    assert problem.loss(block, method) == initial
    assert [r.message.split(": ")[1] for r in caplog.records if r.levelno == logging.WARNING] == [
        "training diverged; back to the start, rates at 0.125",
        "training diverged; back to the start, rates at 0.015625",
    ]


def test_a_step_that_is_not_finite_is_left_out(problem: Problem) -> None:
    method = tuned(epochs=2)
    before = problem.loss(problem.tuned_block(method), method)
    block, found = problem.train(method, broken(problem, 3))
    assert {learned.degraded for learned in found.learned.values()} == {None}
    assert problem.loss(block, method) < before


# --- in the pipeline -------------------------------------------------------------------------------------------------


def codes_of(model: Path, storage: Path, method: MethodConf) -> dict[str, Tensor]:
    request = request_for(model, storage, "rtn", SCHEME)
    request.method.__dict__.update(copy.deepcopy(vars(method)))
    manifest = quantize(request)
    assert manifest is not None
    trained = isinstance(method.tune, BlockTune)
    assert all(report.degraded is None for report in manifest.layer_reports)
    assert all(("tune=block(" in report.applied) == trained for report in manifest.layer_reports)
    linears = quantized_linears(checkpoint_directory(storage, "key"))
    return {name: dequantize(codes, params) for name, (codes, params) in linears.items()}


def test_13_zero_epochs_with_factors_of_one_are_rtn(tiny_llama: Path, tmp_path: Path) -> None:
    untrained = codes_of(tiny_llama, tmp_path / "tuned", tuned(DIRECT, epochs=0))
    rtn = codes_of(tiny_llama, tmp_path / "rtn", MethodConf("rtn", "baseline", round=NearestRound()))
    assert untrained.keys() == rtn.keys() and all(torch.equal(untrained[name], rtn[name]) for name in rtn)


@pytest.mark.parametrize("name", ["omniquant", "autoround", "lrquant"])
def test_a_trained_model_is_made_twice_the_same(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    first, second = (codes_of(tiny_llama, tmp_path / storage, METHODS[name]) for storage in ("first", "second"))
    assert all(torch.equal(first[linear], second[linear]) for linear in first)


def test_gptq_rounds_on_the_grids_that_were_trained(tiny_llama: Path, tmp_path: Path) -> None:
    """Of the first block, whose training sees the same either way; only the codes differ."""
    found = []
    for stage in (NearestRound(), GptqRound()):
        storage = tmp_path / type(stage).__name__
        codes_of(tiny_llama, storage, tuned(stage=stage))
        found.append(quantized_linears(checkpoint_directory(storage, "key")))
    nearest, gptq = found
    for name in nearest:
        if ".layers.0." in name:
            assert torch.equal(nearest[name][1].scale, gptq[name][1].scale)
            assert not torch.equal(nearest[name][0], gptq[name][0])
