"""What training makes of a weight is what rounding makes of what was learned, and its slopes are those they claim."""

import pytest
import torch
from torch import Tensor

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
    SmoothScale,
    UniformScheme,
)
from workers.methods.clip import learned as learned_clip
from workers.methods.grid import group_ranges, params_for_ranges, quantize
from workers.methods.linear import quantize_linear
from workers.methods.scale import learned as learned_scale
from workers.methods.scale import smooth
from workers.methods.scale.channels import Channels
from workers.methods.statistics import Learned, Statistics
from workers.methods.tune.block import TunedLinear
from workers.methods.tune.fake_quantize import fake_quantize, grid_for_ranges, range_ends
from workers.methods.tune.loss import mse, mse_cosine
from workers.methods.tune.sign_sgd import SignSGD

SCHEMES = {
    "rows": UniformScheme(bits=2),
    "groups": UniformScheme(bits=3, group_size=16, scale_dtype="float32"),
    "symmetric": UniformScheme(bits=4, group_size=8, symmetric=True),
}


def tuned(clip: ClipConf, *learns: str, stage: RoundConf | None = None) -> MethodConf:
    tune = BlockTune(learns=list(learns))
    return MethodConf("m", "optimization", clip=clip, tune=tune, round=stage or NearestRound())


DIRECT = LearnedClip(form="direct", init=1.0)
AUTOROUND = tuned(DIRECT, "clip", "rounding")
OMNIQUANT = tuned(LearnedClip(), "clip")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(linear: TunedLinear) -> TunedLinear:
    """As if it had been trained: each parameter somewhere within its bounds."""
    for seed, parameter in enumerate(linear.parameters.values(), start=1):
        moved = parameter.tensor.data + 0.4 * random(*parameter.tensor.shape, seed=seed)
        parameter.tensor.data = moved if parameter.bounds is None else moved.clamp(*parameter.bounds)
    return linear


# --- trained is baked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_13_factors_of_one_and_no_training_are_the_minmax_quantizer(scheme: UniformScheme) -> None:
    weight = random(6, 32)
    linear = TunedLinear(weight, AUTOROUND, scheme)
    rtn = quantize_linear(weight, Statistics(), MethodConf("rtn", "baseline", round=NearestRound()), scheme)
    found = quantize_linear(weight, Statistics(learned=linear.learned()), AUTOROUND, scheme)
    assert torch.equal(found.codes, rtn.codes)
    assert torch.equal(linear.quantized(weight, moved=False), rtn.dense)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("method", [OMNIQUANT, AUTOROUND, tuned(MinmaxClip(), "rounding")], ids=lambda m: m.tune.learns)
def test_what_was_learned_is_applied_to_the_last_bit(method: MethodConf, scheme: UniformScheme) -> None:
    weight = random(6, 32)
    linear = shaken(TunedLinear(weight, method, scheme))
    applied = quantize_linear(weight, Statistics(learned=linear.learned()), method, scheme)
    trained = linear.quantized(weight, moved=False)
    assert torch.equal(applied.dense, trained)
    assert not torch.equal(trained, TunedLinear(weight, method, scheme).quantized(weight, moved=False))


def test_omniquant_starts_at_98_percent_of_the_range() -> None:
    learned = TunedLinear(random(2, 8), OMNIQUANT, SCHEMES["rows"]).learned()
    assert learned.low is not None and learned.high is not None and learned.offset is None
    assert float(learned.low[0, 0]) == float(learned.high[1, 0]) == pytest.approx(0.98201379)


def test_an_offset_takes_a_weight_to_the_next_level() -> None:
    """Levels 0, 1, 2, 3; 0.4 is nearest to 0, and to 1 with a fifth of a step added."""
    weight, offset = torch.tensor([[0.0, 0.4, 0.4, 3.0]]), torch.tensor([[0.0, 0.0, 0.2, 0.4]])
    method = tuned(MinmaxClip(), "rounding")
    found = quantize_linear(weight, Statistics(learned=Learned(offset=offset)), method, UniformScheme(bits=2))
    assert found.codes.tolist() == [[0, 0, 1, 3]]


def test_gptq_on_learned_ranges_of_one_is_gptq() -> None:
    weight, inputs = random(6, 32), random(100, 32, seed=1)
    hessian, ones = inputs.mT @ inputs / 100, torch.ones(6, 2)
    scheme = SCHEMES["groups"]
    method = tuned(LearnedClip(), "clip", stage=GptqRound())
    plain = quantize_linear(weight, Statistics(hessian), MethodConf("gptq", "c", round=GptqRound()), scheme)
    whole = quantize_linear(weight, Statistics(hessian, learned=Learned(ones, ones)), method, scheme)
    half = quantize_linear(weight, Statistics(hessian, learned=Learned(ones / 2, ones / 2)), method, scheme)
    assert torch.equal(plain.codes, whole.codes) and not torch.equal(plain.codes, half.codes)


def test_a_learned_clip_without_anything_learned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.tune=block"):
        learned_clip.fit_grid(random(2, 8), LearnedClip(), SCHEMES["rows"], Statistics())


# --- slopes ----------------------------------------------------------------------------------------------------------


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    return value + (rounded - value).detach()


def by_autograd(weight: Tensor, low: Tensor, high: Tensor, offset: Tensor, scheme: UniformScheme) -> Tensor:
    """The same quantizer out of torch's own differentiable parts."""
    last = 2**scheme.bits - 1
    exact = (high - low) / last
    scale = straight_through(exact, params_for_ranges(low, high, scheme).scale)
    zero_point = torch.full_like(scale, 2 ** (scheme.bits - 1))
    if not scheme.symmetric:
        zero_point = straight_through(-low / scale, torch.round(-low / scale))
    moved = weight.reshape(*scale.shape, -1) / scale.unsqueeze(-1) + offset.reshape(*scale.shape, -1)
    codes = straight_through(moved, moved.round()) + zero_point.unsqueeze(-1)
    return (scale.unsqueeze(-1) * (codes.clamp(0, last) - zero_point.unsqueeze(-1))).reshape(weight.shape)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_slopes_are_those_of_straight_through_rounding(scheme: UniformScheme) -> None:
    weight = random(6, 32).double()
    low, high = (0.6 * end for end in group_ranges(weight, scheme))
    offset = 0.3 * random(6, 32, seed=1).double()
    towards = random(6, 32, seed=2).double()

    def slopes(quantizer: str) -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (weight, low, high, offset)]
        if quantizer == "ours":
            scale, zero_point = grid_for_ranges(inputs[1], inputs[2], scheme)
            values = fake_quantize(inputs[0], scale, zero_point, inputs[3], 2**scheme.bits - 1)
        else:
            values = by_autograd(inputs[0], inputs[1], inputs[2], inputs[3], scheme)
        return list(torch.autograd.grad((values * towards).sum(), inputs))

    codes = quantize(weight, params_for_ranges(low, high, scheme), offset)
    assert 0.05 < float(((codes == 0) | (codes == 2**scheme.bits - 1)).double().mean()) < 0.95
    for ours, theirs in zip(slopes("ours"), slopes("theirs"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # scales and their gradients are float32


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_ends_of_ranges_move_with_the_weights_there(scheme: UniformScheme) -> None:
    weight = random(6, 32)
    weight[0] = 0  # a row without a range
    weight[1] = weight[1].abs() + 1  # a row whose lower end is zero, where no weight is
    towards = random(2, 6, 32 // (scheme.group_size or 32), seed=1)

    def slopes(ours: bool) -> Tensor:
        moved = weight.clone().requires_grad_()
        if ours:
            low, high = range_ends(moved, scheme)
        else:
            groups = moved.reshape(6, -1, scheme.group_size or 32)
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            if scheme.symmetric:
                high = torch.maximum(high, -low)
                low = -high
        ((low * towards[0] + high * towards[1])[1:]).sum().backward()
        assert moved.grad is not None
        return moved.grad

    assert torch.equal(slopes(ours=True), slopes(ours=False))


def test_learned_scales_reach_the_ranges() -> None:
    weight = random(6, 32).requires_grad_()
    linear = TunedLinear(weight.detach(), tuned(DIRECT, "clip"), SCHEMES["groups"])
    linear.quantized(weight, moved=True).square().sum().backward()
    moved = weight.grad
    weight.grad = None
    linear.quantized(weight, moved=False).square().sum().backward()
    assert moved is not None and weight.grad is not None and not torch.equal(moved, weight.grad)


# --- losses, steps, starts -------------------------------------------------------------------------------------------


def test_the_cosine_loss_sees_direction_alone() -> None:
    target = random(4, 16)
    assert float(mse_cosine(target, target)) == pytest.approx(0, abs=1e-6)
    assert float(mse_cosine(2 * target, target)) == pytest.approx(float(mse(2 * target, target)), rel=1e-6)
    half = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0
    assert float(mse_cosine(*half)) == pytest.approx(0.5 + 0.6931472)


def test_sign_sgd_moves_every_entry_by_its_rate() -> None:
    first, second = torch.zeros(3, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = SignSGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": 0.25}], {})
    (first * torch.tensor([3.0, -1e-9, 0.0])).sum().backward()
    second.square().sum().backward()
    optimizer.step()
    assert first.tolist() == [-0.5, 0.5, 0.0] and second.tolist() == [0.75]


def test_a_learned_scale_starts_at_smoothquant_s_or_at_lrquant_s() -> None:
    channels = Channels(mean_abs=torch.tensor([1.0, 1.0, 1e-9]), max_abs=torch.tensor([2.0, 6.0, 1e-9]))
    weights = [random(4, 3)]
    (start,) = learned_scale.scales(channels, weights, LearnedScale(alpha=0.3))
    (closed,) = smooth.scales(channels, weights, SmoothScale(alpha=0.3))
    assert torch.equal(start, closed)
    (start,) = learned_scale.scales(channels, weights, LearnedScale(init="log"))
    assert start.tolist() == pytest.approx([1.0, 2.0, 1e-2])
