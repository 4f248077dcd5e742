from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from workers.models.selective_scan import CHUNK, linear_scan, selective_scan

BATCH, CHANNELS, STATES = 2, 6, 3
NAMES = ("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias")


def inputs(length: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {
        "hidden_states": (BATCH, CHANNELS, length),
        "dt": (BATCH, CHANNELS, length),
        "A": (CHANNELS, STATES),
        "B": (BATCH, STATES, length),
        "C": (BATCH, STATES, length),
        "D": (CHANNELS,),
        "z": (BATCH, CHANNELS, length),
        "delta_bias": (CHANNELS,),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def value_and_gradients(scan: Callable[..., Tensor], length: int) -> list[Tensor]:
    given = inputs(length)
    output = scan(**given, delta_softplus=True)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    gradients = [given[name].grad for name in NAMES]
    assert all(gradient is not None for gradient in gradients)
    return [output.detach(), *(gradient for gradient in gradients if gradient is not None)]


# Less than a chunk, whole chunks, and a last chunk of one step.
@pytest.mark.parametrize("length", [1, CHUNK - 1, 2 * CHUNK, 3 * CHUNK + 1])
def test_values_and_gradients_are_those_of_the_library(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # the library rounds B and x to float32 on the way
    found = value_and_gradients(selective_scan, length)
    expected = value_and_gradients(modeling_mamba.mamba_selective_scan, length)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    given = inputs(CHUNK + 2)
    arguments = tuple(given[name] for name in NAMES)
    assert torch.autograd.gradcheck(partial(selective_scan, delta_softplus=True), arguments)


def test_a_model_uses_it_inside_and_the_library_s_scan_outside() -> None:
    torch.manual_seed(0)
    model: Any = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, time_step_rank=4))
    tokens = torch.randint(0, 32, (2, 40))
    library = modeling_mamba.mamba_selective_scan
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        with linear_scan():
            assert modeling_mamba.mamba_selective_scan is not library
            found = model(tokens, use_cache=False).logits
            continued = model.generate(tokens[:1], max_new_tokens=3, do_sample=False)
    assert modeling_mamba.mamba_selective_scan is library
    # Two float32 sums of the same 40 steps in another order.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(continued, model.generate(tokens[:1], max_new_tokens=3, do_sample=False))
