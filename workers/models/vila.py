"""VILA 1.5: a SigLIP tower, a projector that joins neighbouring patches, LLaMA. Lin et al. 2024 (arXiv 2312.07533).

Built of Transformers' LLaVA, which differs in the projector alone. From the paper: tower, projector and language model
in a row, patches joined two by two. From the public code and its training scripts for 1.5 (NVlabs/VILA): the keys of
config.json, the tensors' names, the projector's layers, where zeros stand and in which order the joined patches come,
and that the tower's last block but one is read, every patch of it. Checked here on random and on small trained models;
the published checkpoints could not be had, so neither their config.json nor an answer of theirs was compared.
"""

from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig
from transformers.models.llava.modeling_llava import LlavaModel, LlavaPreTrainedModel

from workers.models.vila_files import save_parts

PROJECTOR, SIGLIP = "mlp_downsample", "siglip_vision_model"
JOINED = 2  # patches side by side, along each side of the image


@strict
class VilaConfig(LlavaConfig):
    """The config.json beside VILA's three folders, whose parts are called otherwise than LLaVA's.

    image_token_index: the token in whose place image features stand. VILA has none (its code cuts the text instead);
    the default is LLaMA's `<unk>`, which no text becomes. Raises ValueError for what VILA 1.5 7B and 13B do not have.
    """

    model_type = "llava_llama"
    has_no_defaults_at_init = True  # a VILA is nothing without its parts

    text_config: Any = None
    vision_config: Any = None
    image_token_index: int = 0
    llm_cfg: dict[str, Any] | None = None
    vision_tower_cfg: dict[str, Any] | None = None
    mm_projector_cfg: dict[str, Any] | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "cls_patch"
    s2: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = LlamaConfig(**_part("llm_cfg", self.llm_cfg, "llama"))
        self.vision_config = SiglipVisionConfig(**_part("vision_tower_cfg", self.vision_tower_cfg, SIGLIP))
        self.vision_feature_layer, self.vision_feature_select_strategy = self.mm_vision_select_layer, "full"
        kind = (self.mm_projector_cfg or {}).get("mm_projector_type")
        if kind != PROJECTOR:
            raise ValueError(f"mm_projector_cfg.mm_projector_type={kind!r}: VILA 1.5's projector is {PROJECTOR}")
        if self.mm_vision_select_feature != "cls_patch" or self.s2:
            raise ValueError("mm_vision_select_feature must be cls_patch (every patch) and s2 false, as in VILA 1.5")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.image_seq_length = image_tokens(self.vision_config)


def _part(key: str, given: dict[str, Any] | None, model_type: str) -> dict[str, Any]:
    if given is None or given.get("model_type", model_type) != model_type:
        raise ValueError(f"{key} must be the configuration of a {model_type}, found {given!r:.80}")
    return given


def image_tokens(tower: Any) -> int:
    """How many places an image takes: patches joined two by two, of an odd grid with a row and a column more."""
    side = -(-(tower.image_size // tower.patch_size) // JOINED)
    return int(side * side)


class JoinPatches(nn.Module):
    """Squares of four neighbouring patches become one with four times the channels."""

    def forward(self, patches: Tensor) -> Tensor:
        """[n, side * side, C], row after row -> [n, ceil(side / 2)^2, 4 C].

        Zeros stand below and to the right of an odd grid. Squares come column after column, and their channels from
        top left, top right, bottom left and bottom right.
        """
        count, number, channels = patches.shape
        side = round(number**0.5)
        grid = nn.functional.pad(patches.view(count, side, side, channels), (0, 0, 0, side % 2, 0, side % 2))
        half = grid.shape[1] // JOINED
        squares = grid.view(count, half, JOINED, half, JOINED, channels)
        return squares.permute(0, 3, 1, 2, 4, 5).reshape(count, half * half, JOINED * JOINED * channels)


class VilaProjector(nn.Module):
    """`mlp_downsample`: joined patches are normed and go through two linears."""

    def __init__(self, config: VilaConfig) -> None:
        super().__init__()
        joined, hidden = JOINED**2 * config.vision_config.hidden_size, config.text_config.hidden_size
        self.layers = nn.Sequential(
            JoinPatches(), nn.LayerNorm(joined), nn.Linear(joined, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )

    def forward(self, image_features: Tensor) -> Tensor:
        """[n, patches, C] -> [n, places, hidden]."""
        projected: Tensor = self.layers(image_features)
        return projected


class VilaPreTrainedModel(LlavaPreTrainedModel):
    """What starting from random weights needs to know."""

    config: VilaConfig


class VilaModel(VilaPreTrainedModel, LlavaModel):
    """Tower, projector and language model without its head; `forward` is LLaVA's."""

    def __init__(self, config: VilaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # not LlavaModel's, which builds a projector of its own
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = VilaProjector(config)  # type: ignore[assignment]
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()  # type: ignore[no-untyped-call]


class VilaForConditionalGeneration(VilaPreTrainedModel, LlavaForConditionalGeneration):
    """The whole; `forward` is LLaVA's."""

    def __init__(self, config: VilaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = VilaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def save_pretrained(self, directory: Path) -> None:  # type: ignore[override]
        """Write the three folders of the hub. To load them, see workers.export.ordinary."""
        save_parts(self, directory)
