"""Images for a model of Transformers: its processor, its chat format, one answer at a time.

Images are prepared by Pillow (`backend="pil"`), because the environment has no torchvision: what the library calls the
slow processors. Their numbers are those of the published image processors of CLIP and SigLIP.
"""

from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from PIL.Image import new as new_image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from workers.errors import BadInputError
from workers.evaluator import IMAGE_MARK, PROCESSOR_FILES, ImagePrompt, read_config, sees_images
from workers.export import ordinary
from workers.model_parts import folders
from workers.models import register


def load_model(directory: Path, dtype: torch.dtype, **kwargs: Any) -> Any:
    """A checkpoint's model on the host. kwargs: of Transformers' from_pretrained.

    Transformers fills a tensor it does not find with random numbers and warns; here that is a BadInputError.
    """
    register()
    model_class = AutoModelForImageTextToText if sees_images(read_config(directory)) else AutoModelForCausalLM
    with ordinary(directory) as whole:
        loaded: Any = model_class.from_pretrained(
            whole, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise BadInputError(f"{directory}: {len(missing)} tensors are missing, first `{missing[0]}`; copy it again")
    model.generation_config = GenerationConfig()  # a checkpoint's own may sample or penalise repetition
    return model.eval()


def load_processor(directory: Path) -> Any:
    """The processor of a vision-language checkpoint. Raises BadInputError naming what is missing and what to do."""
    if not sees_images(read_config(directory)):
        raise BadInputError(f"{directory}: a language model, it sees no images; leave out the tasks about images")
    register()
    if not any((folder / name).is_file() for folder in folders(directory) for name in PROCESSOR_FILES):
        raise BadInputError(
            f"{directory}: no {' or '.join(PROCESSOR_FILES)}, so images cannot be prepared; copy the model's processor "
            "there: AutoProcessor.from_pretrained(<hub id>).save_pretrained(<directory>)"
        )
    try:
        with ordinary(directory) as whole:
            processor = AutoProcessor.from_pretrained(whole, backend="pil", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{directory}: the processor cannot be loaded ({error}); copy its files again") from error
    if getattr(processor, "image_processor", None) is None:
        raise BadInputError(f"{directory}: the processor prepares no images; copy preprocessor_config.json there")
    if not processor.chat_template:
        raise BadInputError(
            f"{directory}: the processor has no chat template, and answers depend on it; copy the model's "
            "chat_template.jinja (or chat_template.json) there"
        )
    return processor


def encoded(processor: Any, prompt: ImagePrompt) -> Any:
    """Token ids, attention mask and pixels of one prompt, as tensors with one row."""
    text = processor.apply_chat_template([_asked(prompt)], add_generation_prompt=True)
    return processor(images=_whole(processor, prompt), text=[text], return_tensors="pt")


def conversation(processor: Any, prompt: ImagePrompt, reply: str) -> Any:
    """The same of a prompt and what the model says to it."""
    said = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
    text = processor.apply_chat_template([_asked(prompt), said])
    return processor(images=_whole(processor, prompt), text=[text], return_tensors="pt")


def _whole(processor: Any, prompt: ImagePrompt) -> list[Image] | None:
    """A prompt's images; squares of the mean colour around them for a processor that would cut the centre out.

    So LLaVA-1.5 was trained and is evaluated (Liu et al. 2024, image_aspect_ratio=pad); its converted checkpoints have
    CLIP's processor, which loses what lies left and right, or above and below.
    """
    prepares = processor.image_processor
    if not getattr(prepares, "do_center_crop", False):
        return list(prompt.images) or None
    mean = tuple(int(255 * value) for value in prepares.image_mean)
    return [_square(image, mean) for image in prompt.images] or None


def _square(image: Image, colour: tuple[int, ...]) -> Image:
    side = max(image.size)
    square = new_image("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _asked(prompt: ImagePrompt) -> dict[str, Any]:
    """A user's turn as chat templates take it."""
    parts = prompt.text.split(IMAGE_MARK)
    if len(parts) - 1 != len(prompt.images):
        raise BadInputError(
            f"a prompt shows {len(prompt.images)} images and has {len(parts) - 1} places ({IMAGE_MARK}) for them"
        )
    content: list[dict[str, str]] = []
    for number, part in enumerate(parts):
        content += [{"type": "image"}] if number else []
        content += [{"type": "text", "text": part.strip("\n")}] if part.strip() else []
    return {"role": "user", "content": content}


@torch.inference_mode()
def answer(model: Any, processor: Any, prompt: ImagePrompt, max_new_tokens: int) -> str:
    """The greedy answer, without special tokens."""
    tokenizer = processor.tokenizer
    inputs = encoded(processor, prompt).to(model.device, model.dtype)  # casts pixels and leaves token ids alone
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    output = model.generate(**inputs, generation_config=greedy)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
