"""Mini models that ship with the project, with the texts they are calibrated and scored on."""

import difflib
from pathlib import Path

ROOT = Path(__file__).parent
MINIS = (
    "mini_llama",
    "mini_gqa_200",
    "mini_gqa_600",
    "mini_gqa_1800",
    "mini_mixtral",
    "mini_deepseek_moe",
    "mini_mamba",
    "mini_llava",
    "mini_vila",
)
FOLDERS = (*MINIS, "tasks", "mini_images/calibration", "mini_images/held_out")


def zoo_names() -> list[str]:
    """Every name `zoo_path` knows: each shipped folder, and each file in it as `<folder>/<file>`."""
    files = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted([*FOLDERS, *(file.as_posix() for file in files)])


def zoo_path(name: str) -> Path:
    """Path of a shipped folder (`mini_llama`) or of one of its files (`mini_llama/calibration.txt`).

    Raises ValueError that names the nearest valid names when nothing of that name is shipped.
    """
    names = zoo_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, cutoff=0.4) or FOLDERS
        raise ValueError(f"the zoo has no {name!r}; nearest names: {', '.join(nearest)}")
    return ROOT / name
