"""Images shown to a tiny random LLaVA."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.workers.tiny_llava import CHAT, write_llava, write_processor
from workers.errors import BadInputError
from workers.evaluator import ImagePrompt, ShowsImages
from workers.transformers_evaluator import TransformersEvaluator
from workers.transformers_images import encoded, load_processor

MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, 0.4815 0.4578 0.4082, of 255


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def evaluator(llava: Path) -> TransformersEvaluator:
    loaded = TransformersEvaluator(device="cpu")
    loaded.load(llava, "float32", None, 64)
    return loaded


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def prompt(seed: int, words: str = "t5 t6") -> ImagePrompt:
    return ImagePrompt(f"<image>\n{words}", (noise(seed),))


def test_answers_are_those_of_transformers(llava: Path, evaluator: TransformersEvaluator) -> None:
    """Written out here: the chat format, four image tokens, the whole image on a square, pixels by Pillow, greedy."""
    model: Any = AutoModelForImageTextToText.from_pretrained(llava)
    processor = AutoProcessor.from_pretrained(llava)
    for seed in range(3):
        square = np.full((40, 40, 3), MEAN_COLOUR, dtype=np.uint8)
        square[:, 5:35] = np.asarray(noise(seed))
        shown = Image.fromarray(square)
        inputs = processor(text=["USER: <image> t5 t6 ASSISTANT:"], images=[shown], return_tensors="pt")
        assert inputs["input_ids"].tolist() == [[0, 1, 1, 1, 1, 5, 6, 0]]
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=6, eos_token_id=2, pad_token_id=2)
        words = [f"t{t}" for t in tokens[0, 8:].tolist() if t > 2]
        assert evaluator.answer([prompt(seed)], 6) == [" ".join(words)]


def test_an_answer_depends_on_the_image(evaluator: TransformersEvaluator) -> None:
    assert len(set(evaluator.answer([prompt(seed) for seed in range(8)], 6))) > 1


def test_pillow_prepares_the_pixels(llava: Path) -> None:
    assert isinstance(load_processor(llava).image_processor, CLIPImageProcessorPil)


@pytest.mark.parametrize("size", [(40, 120), (120, 40)])
def test_what_lies_at_the_ends_of_a_long_image_is_seen(llava: Path, size: tuple[int, int]) -> None:
    """CLIP's processor cuts them off."""
    plain = np.zeros((*size, 3), dtype=np.uint8)
    marked = plain.copy()
    marked[:20, :20] = 255
    pixels = [
        encoded(load_processor(llava), ImagePrompt("<image>\nt5", (Image.fromarray(image),)))["pixel_values"]
        for image in (plain, marked)
    ]
    assert not torch.equal(*pixels)


def test_text_alone_is_scored_by_the_language_model(llava: Path, evaluator: TransformersEvaluator) -> None:
    (scores,) = evaluator.score([[3, 9, 4, 7]])
    logits = AutoModelForImageTextToText.from_pretrained(llava)(torch.tensor([[3, 9, 4, 7]])).logits[0, :-1]
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(3), torch.tensor([9, 4, 7])]
    np.testing.assert_allclose(scores.logprobs, expected.detach().numpy(), atol=1e-5)


def test_images_stand_where_the_text_says(llava: Path) -> None:
    shown = ImagePrompt("t3 <image> t4 <image>\nt5", (noise(0), noise(1)))
    inputs = encoded(load_processor(llava), shown)
    assert inputs["input_ids"].tolist() == [[0, 3, *[1] * 4, 4, *[1] * 4, 5, 0]]
    assert inputs["pixel_values"].shape[0] == 2


def test_images_and_places_for_them_must_be_as_many(llava: Path) -> None:
    with pytest.raises(BadInputError, match="a prompt shows 1 images and has 0 places"):
        encoded(load_processor(llava), ImagePrompt("t3", (noise(0),)))


def test_the_evaluator_shows_images() -> None:
    assert isinstance(TransformersEvaluator(device="cpu"), ShowsImages)


# --- what is missing -------------------------------------------------------------------------------------------------


def test_a_language_model_sees_no_images_and_can_be_scored(tiny_llama: Path) -> None:
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(tiny_llama, "float32", None, 64)
    assert len(evaluator.score([[1, 2, 3]])[0].logprobs) == 2
    with pytest.raises(BadInputError, match="a language model, it sees no images; leave out the tasks about images"):
        evaluator.answer([prompt(0)], 4)


def test_a_missing_processor_matters_only_where_images_are_shown(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    (copy / "processor_config.json").unlink()
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(copy, "float32", None, 64)
    assert len(evaluator.score([[1, 2, 3]])[0].logprobs) == 2
    with pytest.raises(BadInputError, match=r"no processor_config.json or .* copy the model's processor there: Auto"):
        evaluator.answer([prompt(0)], 4)


def test_a_processor_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    write_processor(tmp_path, chat_template=None)
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    with pytest.raises(BadInputError, match=r"no chat template, .* copy the model's chat_template.jinja"):
        load_processor(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    load_processor(tmp_path)


def test_a_damaged_processor_is_named(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    (copy / "processor_config.json").write_text("{")
    with pytest.raises(BadInputError, match="copy: the processor cannot be loaded"):
        load_processor(copy)
