"""What importing a room brings with it; import-linter sees only who imports whom, not what runs at import."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import conf
import kernels
import orchestrator
import workers.methods

REPOSITORY = Path(__file__).parents[2]
ROOMS = {package.__name__: package for package in (conf, orchestrator, kernels, workers.methods)}
ABSENT = {
    "conf": ("torch", "transformers", "vllm", "ray", "mlflow"),
    "orchestrator": ("torch", "transformers", "vllm"),
    "kernels": ("transformers", "vllm", "ray", "mlflow", "hydra", "omegaconf", "pandas"),
    "workers.methods": ("transformers", "vllm", "ray", "mlflow", "hydra", "omegaconf", "pandas"),
}


def modules_after(statement: str) -> set[str]:
    """The modules of a new interpreter once it has run `statement`."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("room", ABSENT)
def test_importing_a_room_leaves_out_what_it_must_do_without(room: str) -> None:
    package = ROOMS[room]
    found = pkgutil.walk_packages(package.__path__, prefix=f"{room}.")
    modules = [module.name for module in found if not module.name.endswith("__main__")]
    assert modules
    assert not modules_after(f"import {', '.join(modules)}") & set(ABSENT[room])


def test_the_command_line_starts_without_torch_and_vllm() -> None:
    assert not modules_after("import orchestrator.cli") & {"torch", "transformers", "vllm", "ray", "mlflow"}


def test_kernels_is_ours_and_transformers_does_not_take_it_for_hugging_faces() -> None:
    assert Path(kernels.__file__ or "").parent == REPOSITORY / "kernels"
    program = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    run = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
