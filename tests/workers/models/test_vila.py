"""VILA's own parts: how patches are joined, what is read of the tower, which text and places an image gets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.test_transformers_images import noise, prompt
from tests.workers.tiny_vila import IMAGE_SIZE, PLACES, TOWER, vila_config, write_vila
from workers.api import ModelRef
from workers.checkpoint import CheckpointReader
from workers.errors import BadInputError
from workers.export import ordinary
from workers.model_files import load_config, load_tokenizer
from workers.models.vila import JoinPatches, VilaForConditionalGeneration, image_tokens
from workers.models.vila_processor import VICUNA
from workers.transformers_images import encoded, load_model, load_processor

Loaded = tuple[VilaForConditionalGeneration, Any]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vila(tmp_path_factory.mktemp("vila"))


@pytest.fixture(scope="module")
def loaded(directory: Path) -> Loaded:
    with ordinary(directory) as whole:
        return load_model(whole, torch.float32), load_processor(whole)


def test_squares_of_an_even_grid_come_column_after_column() -> None:
    grid = torch.arange(16.0).view(1, 16, 1)
    squares = [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]]
    assert JoinPatches()(grid).tolist() == [squares]


def test_zeros_stand_below_and_to_the_right_of_an_odd_grid() -> None:
    grid = torch.arange(1.0, 10.0).view(1, 9, 1)
    assert JoinPatches()(grid).tolist() == [[[1, 2, 4, 5], [7, 8, 0, 0], [3, 0, 6, 0], [9, 0, 0, 0]]]


def test_channels_of_a_patch_stay_together() -> None:
    grid = torch.arange(8.0).view(1, 4, 2)
    assert JoinPatches()(grid).tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7]]]


def test_the_published_tower_makes_196_places() -> None:
    published = vila_config({}).vision_config
    published.image_size, published.patch_size = 384, 14
    assert image_tokens(published) == 196


@torch.no_grad()
def test_features_are_those_before_the_tower_s_last_block(loaded: Loaded) -> None:
    """Written out here: all patches, unnormed, joined, normed over all their channels, two linears around a GELU."""
    model, processor = loaded
    pixels = processor.image_processor([noise(0)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    tower = model.model.vision_tower
    hidden = tower.embeddings(pixels)
    for block in tower.encoder.layers[:-1]:
        hidden = block(hidden, None)
    norm, first, second = (model.model.multi_modal_projector.layers[i] for i in (1, 2, 4))
    joined = JoinPatches()(hidden)
    spread = (joined - joined.mean(-1, keepdim=True)) / (joined.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = second(torch.nn.functional.gelu(first(spread * norm.weight + norm.bias)))
    (found,) = model.get_image_features(pixels, return_dict=True).pooler_output
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-4)
    assert found.shape == (PLACES, 32)


def test_an_image_takes_its_places_between_pieces_of_text_tokenized_by_themselves(loaded: Loaded) -> None:
    inputs = encoded(loaded[1], prompt(0))
    assert inputs["input_ids"].tolist() == [[0, *[1] * PLACES, 5, 6, 0]]
    assert inputs["pixel_values"].shape[0] == 1


def test_without_a_template_of_its_own_a_turn_is_vicuna_s(loaded: Loaded) -> None:
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "So."}]}
    said = loaded[1].tokenizer.apply_chat_template(
        [ask, answer, ask], chat_template=VICUNA, add_generation_prompt=True, tokenize=False
    )
    system, _, turns = said.partition("questions. ")
    assert system.startswith("A chat between a curious user")
    assert turns == "USER: <image>\nWhy? ASSISTANT: So.</s> USER: <image>\nWhy? ASSISTANT:"


def test_what_the_public_code_writes_into_config_json_is_read(directory: Path, tmp_path: Path) -> None:
    """Keys of its configuration class, and in each part what Transformers 4.36 wrote of any model."""
    config = json.loads((directory / "config.json").read_text())
    of_any = {
        "_name_or_path": "./vlm",
        "add_cross_attention": False,
        "bad_words_ids": None,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "length_penalty": 1.0,
        "max_length": 20,
        "output_attentions": False,
        "pruned_heads": {},
        "return_dict": True,
        "tie_encoder_decoder": False,
        "torchscript": False,
        "torch_dtype": "bfloat16",
        "use_bfloat16": False,
    }
    of_llama = {"model_max_length": 4096, "rope_scaling": None, "rope_theta": 10000.0, "pad_token_id": 0}
    config["llm_cfg"] |= of_any | of_llama | {"architectures": ["LlamaForCausalLM"]}
    config["vision_tower_cfg"] |= of_any | {"architectures": ["SiglipVisionModel"]}
    config["mm_projector_cfg"] |= of_any | {"architectures": ["MultimodalProjector"], "model_type": "v2l_projector"}
    config |= {
        "_name_or_path": "./vlm",
        "drop_path_rate": 0.0,
        "hidden_size": 32,
        "image_aspect_ratio": "resize",
        "interpolate_mode": "linear",
        "mm_hidden_size": 16,
        "mm_projector_lr": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "model_dtype": "torch.bfloat16",
        "num_video_frames": 8,
        "resume_path": "./vlm",
        "s2": False,
        "s2_max_split_size": 336,
        "s2_scales": "336,672,1008",
        "transformers_version": "4.36.2",
        "tune_language_model": True,
        "vision_resolution": -1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = load_config(ModelRef("m", "m", "vila", "f"), tmp_path)
    assert read.get_text_config().num_hidden_layers == 2
    assert (read.vision_config.hidden_size, read.image_seq_length, read.vision_feature_layer) == (16, PLACES, -2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mm_projector_cfg": {"mm_projector_type": "mlp2x_gelu"}}, "projector is mlp_downsample"),
        ({"mm_vision_select_feature": "patch"}, "must be cls_patch"),
        ({"s2": True}, "s2 false"),
        ({"vision_tower_cfg": {**TOWER, "model_type": "clip_vision_model"}}, "of a siglip_vision_model"),
        ({"llm_cfg": None}, "llm_cfg must be the configuration of a llama"),
    ],
)
def test_what_is_not_vila_1_5_is_refused(directory: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInputError, match=said):
        load_config(ModelRef("m", "m", "vila", "f"), tmp_path)


# --- three folders ---------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_the_language_model_s(directory: Path) -> None:
    tokenizer = load_tokenizer(ModelRef("m", "m", "vila", "f", directory=str(directory)), directory)
    assert tokenizer("t5 t6").input_ids == [5, 6]


def remove(directory: Path) -> None:
    (directory / "mm_projector" / "model.safetensors").unlink()


def repeat(directory: Path) -> None:
    (directory / "mm_projector" / "model.safetensors").write_bytes(
        (directory / "vision_tower" / "model.safetensors").read_bytes()
    )


@pytest.mark.parametrize(
    ("harm", "said"), [(remove, "mm_projector: neither model.safetensors"), (repeat, "tensors are in two of its parts")]
)
def test_a_part_that_is_missing_or_another_is_named(harm: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    damaged = write_vila(tmp_path / "vila")
    harm(damaged)
    with pytest.raises(BadInputError, match=said):
        CheckpointReader(damaged)
