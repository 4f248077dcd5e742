from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from workers.zoo import zoo_path
from workers.zoo.images.sight import learn_to_see
from workers.zoo.images.windows import WindowMaker
from workers.zoo.recipes import mini_llava


def learned(num_steps: int) -> tuple[Any, float]:
    torch.manual_seed(0)
    model = mini_llava.make()
    processor = mini_llava.processor(Tokenizer.from_file(str(zoo_path("mini_llama/tokenizer.json"))), 512)
    loss = learn_to_see(model, WindowMaker(processor, 0, 64), 4, replace(mini_llava.TRAIN, sight_steps=num_steps))
    return model, loss


def test_tower_and_projector_learn_and_are_frozen_and_the_language_model_stays() -> None:
    torch.manual_seed(0)
    before = dict(mini_llava.make().named_parameters())
    model, _ = learned(1)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    sees = {name for name in before if "vision_tower" in name or "projector" in name}
    assert changed == {name for name in sees if "post_layernorm" not in name}  # which LLaVA does not use
    assert changed == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.slow
def test_what_is_where_is_seen_within_the_steps_of_the_recipe() -> None:
    """Of seven colours, five shapes and nine tokens, nothing among them, chance is ln 7 + ln 5 + ln 9 = 5.8."""
    _, loss = learned(mini_llava.TRAIN.sight_steps)
    assert loss < 0.1
