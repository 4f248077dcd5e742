"""Windows with images, against the processor; block inputs, against the whole model of Transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from conf.schema import CalibrationConf, UniformScheme
from tests.workers.tiny_llava import VOCAB_SIZE, write_llava
from tests.workers.tiny_requests import METHODS, request_for
from tests.workers.tiny_vila import write_vila
from workers.api import Manifest, ModelRef, QuantizeRequest, TextRef
from workers.calibration import Calibration, canary_tokens
from workers.datasets import folder_hash
from workers.errors import BadInputError
from workers.export import write_dense
from workers.image_calibration import image_windows
from workers.layout import checkpoint_directory
from workers.pipeline import quantize
from workers.stream import BlockStream
from workers.transformers_images import load_model, load_processor

NUM_IMAGES = 4
IMAGE = 1  # the token
PER_IMAGE = 4
MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, of 255


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


def write_folder(folder: Path, seed: int = 0) -> Path:
    (folder / "images").mkdir(parents=True)
    entries = []
    for index in range(NUM_IMAGES):
        noise = np.random.default_rng([seed, index]).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{index}.png")
        entries.append({"question": f"t{10 + index} t5", "answer": f"t{20 + index}", "image": f"{index}.png"})
    (folder / "questions.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("questions") / "folder")


def conf(count: int, length: int) -> CalibrationConf:
    return CalibrationConf(
        name="images", source="images", num_sequences=count, sequence_length=length, prompt="{{question}}"
    )


def calibration(llava: Path, folder: Path, count: int = 5, length: int = 25, seed: int = 0) -> Calibration:
    processor = load_processor(llava)
    return Calibration(*image_windows(conf(count, length), folder, processor, seed, VOCAB_SIZE))


def test_windows_are_conversations_one_after_the_other(llava: Path, folder: Path) -> None:
    """Eight tokens each: `USER: <image> t1i t5USER: t2i` is what the tiny model's template makes of them."""
    made = calibration(llava, folder, length=24)
    assert made.windows.shape == (5, 24) and made.shown is not None
    seen = []
    for window, rows in zip(made.windows, made.shown.rows, strict=True):
        for start in (0, 8, 16):
            stretch = window[start : start + 8]
            assert stretch[1 : 1 + PER_IMAGE].tolist() == [IMAGE] * PER_IMAGE
            number = int(stretch[5]) - 10
            assert stretch.tolist() == [0, IMAGE, IMAGE, IMAGE, IMAGE, 10 + number, 0, 20 + number]
            pixels = made.shown.pixel_values[rows[start + 1] // PER_IMAGE]
            processor = AutoProcessor.from_pretrained(llava)
            square = Image.new("RGB", (40, 40), MEAN_COLOUR)
            with Image.open(folder / "images" / f"{number}.png") as image:
                square.paste(image, (5, 0))
            expected = processor.image_processor([square], return_tensors="np")["pixel_values"][0]
            np.testing.assert_array_equal(pixels, expected)
            seen.append(number)
    assert sorted(seen[:NUM_IMAGES]) == list(range(NUM_IMAGES))


def test_the_same_seed_draws_the_same_windows_and_another_one_others(llava: Path, folder: Path) -> None:
    hashes = [calibration(llava, folder, seed=seed).hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_is_of_the_pixels_too(llava: Path, folder: Path, tmp_path: Path) -> None:
    one, other = calibration(llava, folder), calibration(llava, write_folder(tmp_path / "other", seed=1))
    np.testing.assert_array_equal(one.windows, other.windows)
    assert one.hash != other.hash != Calibration(one.windows).hash


def test_a_canary_holds_no_image(llava: Path, folder: Path) -> None:
    prompts = canary_tokens(calibration(llava, folder))
    assert len(prompts) == 5 and len(set(map(len, prompts))) == 1
    assert all(IMAGE not in prompt for prompt in prompts)


@pytest.mark.parametrize(("kind", "length"), [("llava", 16), ("llava", 19), ("llava", 22), ("vila", 28)])
def test_block_inputs_are_those_of_the_whole_model(
    llava: Path, folder: Path, tmp_path: Path, kind: str, length: int
) -> None:
    """Of 19 tokens, the last two are of an image that is cut: the model is shown all of it, and its tail left out.

    In float64: the tower sees other images beside these, and in float32 sums in another order differ by 2e-5.
    """
    model = llava if kind == "llava" else write_vila(tmp_path)
    made = calibration(model, folder, count=3, length=length)
    assert made.shown is not None
    per_image = made.shown.per_image
    stream = BlockStream(
        ModelRef("tiny", str(model), kind, "x", directory=str(model)),
        model,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    batches, kwargs = stream.first_inputs(torch.from_numpy(made.windows), made.shown)
    got = torch.cat(batches)
    whole = load_model(model, torch.float64)
    inputs: list[torch.Tensor] = []
    whole.model.language_model.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for index, (window, rows) in enumerate(zip(made.windows, made.shown.rows, strict=True)):
        images = sorted({int(row) // per_image for row in rows if row >= 0})
        missing = len(images) * per_image - int((rows >= 0).sum())
        tokens = torch.tensor([window.tolist() + [IMAGE] * missing])
        with torch.no_grad():
            whole(input_ids=tokens, pixel_values=torch.from_numpy(made.shown.pixel_values[images]).double())
        torch.testing.assert_close(got[index], inputs[-1][0, :length])
    assert "position_embeddings" in kwargs
    assert all(parameter.is_meta for parameter in stream.model.parameters())


def test_an_image_that_fills_a_window_is_refused(llava: Path, folder: Path) -> None:
    with pytest.raises(BadInputError, match=r"an image is 4 tokens, and a calibration window 4; raise"):
        calibration(llava, folder, length=4)


# --- through the pipeline --------------------------------------------------------------------------------------------


def request(llava: Path, folder: Path, storage: Path, method: str, bits: int) -> QuantizeRequest:
    asked = request_for(llava, storage, method, UniformScheme(bits=bits, scale_dtype="float32"))
    return replace(
        asked,
        model=ModelRef("tiny", str(llava), "llava", "x", directory=str(llava)),
        calibration=conf(6, 40),
        calibration_text=TextRef("images", str(folder), folder_hash(folder)),
    )


def made(asked: QuantizeRequest) -> Manifest:
    manifest = quantize(asked)
    assert manifest is not None
    return manifest


@torch.no_grad()
def logits(model: Path, shown: Calibration) -> torch.Tensor:
    """Of one whole window, of which 40 tokens are five conversations."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    assert shown.shown is not None
    pixels = torch.from_numpy(shown.shown.pixel_values[:5])
    found: torch.Tensor = loaded(input_ids=torch.from_numpy(shown.windows[:1]), pixel_values=pixels).logits
    return found


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_methods_run_on_images_and_every_linear_sees_every_token(
    method: str, llava: Path, folder: Path, tmp_path: Path
) -> None:
    manifest = made(request(llava, folder, tmp_path, method, 3))
    assert manifest.calibration_hash == calibration(llava, folder, 6, 40).hash
    assert manifest.calibration_num_tokens == 240
    reports = manifest.layer_reports
    assert len(reports) == 14 and not any(report.degraded for report in reports)
    assert {report.num_tokens for report in reports} == {0 if method in ("rtn", "quarot") else 240}


def test_hessians_are_of_the_images(llava: Path, folder: Path, tmp_path: Path) -> None:
    """Other pictures behind the same words round the weights differently."""
    other = write_folder(tmp_path / "other", seed=1)
    losses = []
    for number, asked in enumerate((folder, other)):
        manifest = made(request(llava, asked, tmp_path / str(number), "gptq", 3))
        losses.append([report.proxy_loss for report in manifest.layer_reports])
    assert all(one != two for one, two in zip(*losses, strict=True))


def test_a_rotated_model_sees_what_it_saw(llava: Path, folder: Path, tmp_path: Path) -> None:
    """At eight bits, rounded with the rotation as without it: the projector writes what the embedding does, turned."""
    shown = calibration(llava, folder, 6, 40)
    before = logits(llava, shown)
    errors = {}
    for method in ("rtn", "quarot"):
        asked = request(llava, folder, tmp_path / method, method, 8)
        made(asked)
        write_dense(checkpoint_directory(Path(asked.storage), asked.quantize_key), tmp_path / f"{method}-d", "float32")
        errors[method] = (logits(tmp_path / f"{method}-d", shown) - before).norm() / before.norm()
    assert errors["quarot"] < 2 * errors["rtn"] < 0.1


def test_a_folder_that_changed_is_refused(llava: Path, folder: Path, tmp_path: Path) -> None:
    asked = request(llava, folder, tmp_path, "rtn", 3)
    with pytest.raises(BadInputError, match="not what the sweep resolved"):
        quantize(replace(asked, calibration_text=replace(asked.calibration_text, fingerprint="sha256:other")))
