from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from workers.evaluator import ImagePrompt
from workers.transformers_images import encoded
from workers.zoo import zoo_path
from workers.zoo.images.scenes import SIZE, draw, scene
from workers.zoo.images.windows import STRETCH, WindowMaker
from workers.zoo.recipes import mini_llava

LENGTH = 128
NUM_IMAGE_TOKENS = 9


@pytest.fixture(scope="module")
def processor() -> Any:
    return mini_llava.processor(Tokenizer.from_file(str(zoo_path("mini_llama/tokenizer.json"))), 512)


def test_windows_are_full_and_begin_each_stretch_with_an_image(processor: Any) -> None:
    windows = WindowMaker(processor, 0, LENGTH).make(0, 3)
    assert windows.input_ids.shape == windows.answers.shape == (3, LENGTH)
    stretches = windows.input_ids.view(-1, STRETCH)
    is_image = stretches == processor.image_token_id
    assert is_image[:, :NUM_IMAGE_TOKENS].all() and not is_image[:, NUM_IMAGE_TOKENS:].any()
    assert windows.pixel_values.shape == (len(stretches), 3, SIZE, SIZE)


def test_windows_are_those_of_their_numbers_whatever_is_made_before(processor: Any) -> None:
    maker = WindowMaker(processor, 0, LENGTH)
    whole, part = maker.make(0, 4), maker.make(2, 1)
    assert torch.equal(whole.input_ids[2:3], part.input_ids)
    assert torch.equal(whole.pixel_values[4:6], part.pixel_values)


def test_a_first_question_is_encoded_as_the_evaluator_does(processor: Any) -> None:
    """So that the model is asked in the very tokens that it learned from, and shown the same pixels."""
    windows = WindowMaker(processor, 0, STRETCH).make(0, 8)
    for index, (tokens, answers) in enumerate(zip(windows.input_ids, windows.answers, strict=True)):
        start = int(answers.int().argmax())
        text = processor.tokenizer.decode(tokens[NUM_IMAGE_TOKENS:start])
        prompt = ImagePrompt(f"<image>\n{text}", (Image.fromarray(draw(scene(0, index))),))
        inputs = encoded(processor, prompt)
        assert inputs["input_ids"][0].tolist() == tokens[:start].tolist()
        assert torch.equal(inputs["pixel_values"][0], windows.pixel_values[index])


def test_answers_are_marked_up_to_the_token_that_closes_them(processor: Any) -> None:
    windows = WindowMaker(processor, 0, STRETCH).make(0, 8)
    said = "".join(processor.tokenizer.decode(windows.input_ids[windows.answers]))
    asked = processor.tokenizer.decode(windows.input_ids[~windows.answers])
    end = processor.tokenizer.eos_token
    assert said.count(end) > 8 and end not in asked
    assert "What" in asked and "?" not in said


def test_windows_that_stretches_do_not_fill_are_refused(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"a window of 100 tokens, an image of 9: stretches of 64 do not fit"):
        WindowMaker(processor, 0, 100)
