"""What the environment of an engine process promises."""

import subprocess
import sys
from pathlib import Path

from workers.engine.environment import ENVIRONMENT


def test_nobody_is_told_of_the_use() -> None:
    assert ENVIRONMENT["VLLM_NO_USAGE_STATS"] == ENVIRONMENT["DO_NOT_TRACK"] == "1"


def test_the_environment_is_known_without_torch_or_vllm() -> None:
    code = "import sys, workers.engine.environment; print('torch' in sys.modules, 'vllm' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
