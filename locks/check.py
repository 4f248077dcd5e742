"""Run by setup.sh in the new environment: is it what the lists say, and does what every sweep imports import?

The imports also write the bytecode that pip was told to leave out. Usage: check.py LIST...
"""

import importlib
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# One process each: the engine's side, and the driver's side.
IMPORTED = (
    ("torch", "transformers", "transformers.models.auto.modeling_auto", "vllm.entrypoints.llm"),
    ("ray", "mlflow.server", "hydra", "pandas", "matplotlib.pyplot", "lm_eval.evaluator", "pytest", "hypothesis"),
)


def pins(path: Path) -> dict[str, str]:
    """The `name==version` lines of one list."""
    return dict(re.findall(r"^([^#\s]+)==(\S+)$", path.read_text(), re.MULTILINE))


def complaint(name: str, pinned: str) -> str | None:
    """What is wrong with the installed version of one package."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return f"{name}: {pinned} is pinned, none is installed"
    return None if installed == pinned else f"{name}: {pinned} is pinned, {installed} is installed"


def import_all(modules: tuple[str, ...]) -> None:
    """Raise where one of `modules` cannot be imported."""
    for module in modules:
        importlib.import_module(module)


def main(paths: list[Path]) -> int:
    """Print every complaint; 0 where there is none."""
    complaints = [text for path in paths for name, pinned in pins(path).items() if (text := complaint(name, pinned))]
    print("\n".join(complaints))
    if complaints:
        return 1
    with ProcessPoolExecutor(len(IMPORTED)) as processes:
        list(processes.map(import_all, IMPORTED))
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
