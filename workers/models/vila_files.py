"""A VILA in the three folders of its hub."""

import json
from pathlib import Path
from typing import Any

from workers.checkpoint import SINGLE, save_tensors

# folder, and what its tensors are called: the beginning of a module's name -> the beginning of the file's
PLACES = (
    ("llm", "model.language_model.", "model."),
    ("llm", "lm_head.", "lm_head."),
    ("vision_tower", "model.vision_tower.", "vision_model."),
    ("mm_projector", "model.multi_modal_projector.", ""),
)


def save_parts(model: Any, directory: Path) -> None:
    """Write the weights of a VilaForConditionalGeneration, and what config.json says of the whole and of each part."""
    parts: dict[str, dict[str, Any]] = {folder: {} for folder, _, _ in PLACES}
    for name, tensor in model.state_dict().items():
        ((folder, ours, theirs),) = [place for place in PLACES if name.startswith(place[1])]
        parts[folder][theirs + name.removeprefix(ours)] = tensor
    for folder, tensors in parts.items():
        (directory / folder).mkdir(parents=True, exist_ok=True)
        save_tensors(directory / folder / SINGLE, tensors, {"format": "pt"})
    config = {
        "model_type": model.config.model_type,
        "architectures": ["LlavaLlamaModel"],
        "llm_cfg": model.config.text_config.to_diff_dict(),
        "vision_tower_cfg": model.config.vision_config.to_diff_dict(),
        "mm_projector_cfg": model.config.mm_projector_cfg,
        "mm_vision_select_layer": model.config.mm_vision_select_layer,
        "mm_vision_select_feature": model.config.mm_vision_select_feature,
        "image_token_index": model.config.image_token_index,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }
    for part in ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg"):
        text = json.dumps(config[part], indent=2) + "\n"
        (directory / part.removesuffix("_cfg") / "config.json").write_text(text, encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
