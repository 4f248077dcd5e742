"""One data table per architecture, by its name."""

from workers.arch.architecture import Architecture, BlockKind, LinearGroup, foldable, is_skipped
from workers.arch.deepseek_moe import DEEPSEEK_MOE
from workers.arch.llama import LLAMA
from workers.arch.llava import LLAVA
from workers.arch.mamba import MAMBA
from workers.arch.mixtral import MIXTRAL
from workers.arch.vila import VILA

ARCHITECTURES: dict[str, Architecture] = {
    table.name: table for table in (LLAMA, MIXTRAL, DEEPSEEK_MOE, MAMBA, LLAVA, VILA)
}

__all__ = ["ARCHITECTURES", "Architecture", "BlockKind", "LinearGroup", "foldable", "is_skipped"]
