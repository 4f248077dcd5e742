"""What a method does to a model that sees, seen through images: the canary reads text alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from conf.schema import HadamardRotate, UniformScheme
from tests.workers.arch.tiny import MODELS, dense, load, made, request, write
from tests.workers.tiny_requests import VOCAB_SIZE

IMAGE = VOCAB_SIZE - 1  # the token that stands for a part of an image
PLACES = {"llava": 4, "vila": 9}
SIZE = {"llava": 28, "vila": 20}


@torch.no_grad()
def logits(model: torch.nn.Module, name: str, seed: int) -> Tensor:
    """After an image of noise and eight words."""
    pixels = torch.randn(1, 3, SIZE[name], SIZE[name], generator=torch.Generator().manual_seed(seed))
    tokens = torch.tensor([[IMAGE] * PLACES[name] + list(range(3, 11))])
    found: Tensor = model(input_ids=tokens, pixel_values=pixels).logits
    return found[:, PLACES[name] :]


@pytest.mark.parametrize("name", [name for name in MODELS if name in PLACES])
def test_an_image_still_says_the_same_after_a_rotation(name: str, tmp_path: Path) -> None:
    """The projector writes the residual stream too; one that was not turned would be as far off as another image."""
    model = write(name, tmp_path / "model", initializer_range=0.2)
    _, packed = made(request(name, model, tmp_path, "rtn", UniformScheme(bits=8), rotate=HadamardRotate()))
    before, after = load(name, model), load(name, dense(packed, tmp_path / "dense"))
    with torch.no_grad():
        moved = [logits(after, name, seed) - logits(before, name, seed) for seed in range(2)]
        apart = logits(before, name, 0) - logits(before, name, 1)
    assert max(float(m.norm()) for m in moved) < 0.2 * float(apart.norm())
