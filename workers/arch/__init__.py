"""One data table per architecture; the key is config.json's model_type."""

from workers.arch.architecture import Architecture, BlockKind, LinearGroup, foldable
from workers.arch.llama import LLAMA
from workers.arch.llava import LLAVA
from workers.arch.mamba import MAMBA
from workers.arch.mixtral import MIXTRAL

ARCHITECTURES: dict[str, Architecture] = {table.name: table for table in (LLAMA, MIXTRAL, MAMBA, LLAVA)}

__all__ = ["ARCHITECTURES", "Architecture", "BlockKind", "LinearGroup", "foldable"]
