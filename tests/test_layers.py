"""What import-linter cannot see: what a plan brings into memory, and how long files are."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
from tests.orchestrator.hand_made import write_checkpoint, write_text

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("conf", "orchestrator", "workers", "kernels", "tests", "locks")
SOURCES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
HEAVY = {"torch", "transformers", "vllm", "ray", "mlflow", "lm_eval"}
MOST_LINES = 400

PLAN = """
import json, sys
from orchestrator import cli
assert cli.main(["plan", *sys.argv[1:]]) == 0
print(json.dumps(sorted(sys.modules)))
"""


def test_planning_needs_no_torch_transformers_or_engine(tmp_path: Path) -> None:
    """Expanding, resolving, hashing, counting tokens, choosing the engine and estimating."""
    write_checkpoint(tmp_path / "tiny")
    write_text(tmp_path / "text.txt", 100)
    mine = ["model=hf", "model.repo=./tiny", "calibration=text", "calibration.path=text.txt", "suite=text"]
    windows = ["suite.path=text.txt", "calibration.sequence_length=32", "suite.sequence_length=32"]
    command = [sys.executable, "-c", PLAN, "experiment=smoke", "method=none,gptq", *mine, *windows]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "2 cells: 2 PENDING" in run.stdout
    assert not HEAVY & set(json.loads(run.stdout.splitlines()[-1]))


def test_kernels_is_the_one_of_this_repository() -> None:
    assert Path(kernels.__file__).is_relative_to(REPOSITORY)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if len(p.read_text().splitlines()) > MOST_LINES], ids=lambda p: p.name
)
def test_a_long_file_says_why(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"Longer than {MOST_LINES} lines" in docstring


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in SOURCES if drawers & {path.stem, path.parent.name}]
