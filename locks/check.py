"""Run by setup.sh in the new environment: is it what the lists say, and does what every sweep imports import?

The imports also write the bytecode that pip was told to leave out. Usage: check.py LIST...
"""

import importlib
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from orchestrator.admission import installed, mismatches, pins

# One process each: the engine's side, and the driver's side.
IMPORTED = (
    ("torch", "transformers", "transformers.models.auto.modeling_auto", "vllm.entrypoints.llm"),
    ("ray", "mlflow.server", "hydra", "pandas", "matplotlib.pyplot", "lm_eval.evaluator", "pytest", "hypothesis"),
)


def import_all(modules: tuple[str, ...]) -> None:
    """Raise where one of `modules` cannot be imported."""
    for module in modules:
        importlib.import_module(module)


def main(paths: list[Path]) -> int:
    """Print every complaint; 0 where there is none."""
    pinned = {name: version for path in paths for name, version in pins(path.read_text(encoding="utf-8")).items()}
    complaints = mismatches(pinned, installed(pinned))
    print("\n".join(complaints))
    if complaints:
        return 1
    with ProcessPoolExecutor(len(IMPORTED)) as processes:
        list(processes.map(import_all, IMPORTED))
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
