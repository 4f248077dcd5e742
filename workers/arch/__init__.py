"""One data table per architecture; the key is config.json's model_type."""

from workers.arch.architecture import Architecture, LinearGroup
from workers.arch.llama import LLAMA

ARCHITECTURES: dict[str, Architecture] = {"llama": LLAMA}

__all__ = ["ARCHITECTURES", "Architecture", "LinearGroup"]
