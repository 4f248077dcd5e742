"""AWQ's scales and its clip, against brute force."""

import pytest
import torch
from torch import Tensor

from conf.schema import AwqScale, SearchClip, SmoothScale, UniformScheme
from workers.methods.clip import minmax, search
from workers.methods.grid import dequantize, params_for_ranges, quantize
from workers.methods.scale import awq, smooth
from workers.methods.scale.channels import Channels
from workers.methods.statistics import Statistics


def _channels() -> Channels:
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(24, generator=generator) * 5
    mean[3] = 0  # a silent channel
    return Channels(mean, 3 * mean)


def test_the_first_candidate_is_no_scale_and_every_one_is_balanced() -> None:
    candidates = awq.scales(_channels(), [], AwqScale(grid=20))
    assert len(candidates) == 20
    assert torch.equal(candidates[0], torch.ones(24))
    for scale in candidates:
        assert (scale.max() * scale.min()).sqrt() == pytest.approx(1, rel=1e-5)
        assert torch.isfinite(scale).all() and (scale > 0).all()


def test_candidates_follow_the_formula() -> None:
    channels = _channels()
    raw = channels.mean_abs.pow(0.35).clamp(min=1e-4)
    assert torch.allclose(awq.scales(channels, [], AwqScale(grid=20))[7], raw / (raw.max() * raw.min()).sqrt())


def test_smoothing_moves_half_of_the_range_into_the_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(8, 24, generator=generator), torch.randn(4, 24, generator=generator)]
    channels = Channels(torch.ones(24), torch.rand(24, generator=generator) + 0.5)
    (scale,) = smooth.scales(channels, weights, SmoothScale())
    largest = torch.cat(weights).abs().amax(0)
    assert torch.allclose(channels.max_abs / scale, largest * scale, rtol=1e-5)


def _problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 16, generator=generator, dtype=torch.float64) ** 3
    inputs = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    return weight, inputs


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_clip_is_the_one_that_brute_force_finds(symmetric: bool, group_size: int | None) -> None:
    weight, inputs = _problem()
    clip = SearchClip(grid=10, max_shrink=0.5, symmetric=symmetric)
    scheme = UniformScheme(bits=2, group_size=group_size, scale_dtype="float32")
    found = search.fit_grid(weight, clip, scheme, Statistics(inputs=inputs))
    size, steps = group_size or 16, [1 - i / 10 for i in range(5)]
    for row in range(5):
        for group in range(16 // size):
            columns = slice(group * size, (group + 1) * size)
            w, x = weight[row : row + 1, columns], inputs[:, columns]
            ends = w.min().clamp(max=0), w.max().clamp(min=0)
            most = max(-ends[0], ends[1])
            best, smallest = None, float("inf")
            for low, high in [(s, s) for s in steps] if symmetric else [(a, b) for a in steps for b in steps]:
                cut = (
                    (max(ends[0], -low * most), min(ends[1], high * most))
                    if symmetric
                    else (low * ends[0], high * ends[1])
                )
                params = params_for_ranges(
                    torch.as_tensor(cut[0]).reshape(1, 1),
                    torch.as_tensor(cut[1]).reshape(1, 1),
                    UniformScheme(bits=2, scale_dtype="float32"),
                )
                error = dequantize(quantize(w, params), params, torch.float64) - w
                loss = float((x @ error.mT).square().mean())
                if loss < smallest:
                    best, smallest = params, loss
            assert best is not None
            assert torch.equal(found.scale[row, group], best.scale[0, 0])
            assert torch.equal(found.zero_point[row, group], best.zero_point[0, 0])


def test_weights_on_the_grid_are_not_clipped() -> None:
    scheme = UniformScheme(bits=2, scale_dtype="float32")
    weight = torch.tensor([[-1.0, 0.0, 1.0, 2.0], [0.5, 0.0, 1.5, 1.0]])
    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    whole = minmax.fit_grid(weight, None, scheme)  # type: ignore[arg-type]
    assert torch.equal(search.fit_grid(weight, SearchClip(), scheme, Statistics(inputs=inputs)).scale, whole.scale)


def test_a_clip_without_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="needs inputs"):
        search.fit_grid(torch.ones(2, 2), SearchClip(), UniformScheme(bits=2), None)
