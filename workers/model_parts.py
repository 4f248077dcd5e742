"""Checkpoints that lie in a folder for each of their parts, as VILA's do. No torch: the planner reads them too.

    config.json             of the whole
    llm/                    language model and tokenizer
    vision_tower/           image tower and preprocessor_config.json
    mm_projector/           projector

Tensors have the names of their part alone, and no two parts use one name, so that a checkpoint is read, quantized and
written as if it lay in one folder; what we write does.
"""

from pathlib import Path

LANGUAGE = "llm"
PARTS = (LANGUAGE, "vision_tower", "mm_projector")


def in_parts(directory: Path) -> bool:
    """Whether a model's directory is one of several parts."""
    return (directory / LANGUAGE).is_dir()


def folders(directory: Path) -> list[Path]:
    """All folders that a model's files lie in, its own first; a part's may be missing."""
    return [directory, *(directory / part for part in PARTS)] if in_parts(directory) else [directory]


def weight_folders(directory: Path) -> list[Path]:
    """The folders that hold the weights."""
    return folders(directory)[1:] or [directory]


def tokenizer_folder(directory: Path) -> Path:
    """The folder that holds the tokenizer."""
    return directory / LANGUAGE if in_parts(directory) else directory
