"""The shipped minis under the block driver."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.workers.zoo.minis import mini_ref, text_tokens
from workers.arch import ARCHITECTURES
from workers.models import register
from workers.stream import BlockStream
from workers.zoo import MINIS, zoo_path

AUTO = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoModelForImageTextToText": AutoModelForImageTextToText}


@pytest.mark.parametrize("name", MINIS)
def test_16_block_by_block_without_quantization_is_the_whole_model(name: str) -> None:
    register()
    ref, directory = mini_ref(name), zoo_path(name)
    tokens = torch.tensor(text_tokens("held_out")[:128]).view(2, 64)
    stream = BlockStream(ref, directory, dtype=torch.float32, device=torch.device("cpu"))
    batches, kwargs = stream.first_inputs(tokens)
    for index in range(stream.num_blocks):
        with stream.block(index) as block:
            stream.run(block, batches, kwargs, batches.__setitem__)
    model = AUTO[ARCHITECTURES[ref.architecture].model_class].from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        whole = torch.log_softmax(model(input_ids=tokens).logits[:, :-1], dim=-1).gather(2, tokens[:, 1:, None])
    found = stream.log_probabilities(batches, tokens)
    assert (found - whole.squeeze(2)).abs().max() < 1e-5 * whole.abs().max()
