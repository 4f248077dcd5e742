"""What the environment of an engine process promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch._dynamo

from workers.engine.environment import ENVIRONMENT, prepare_process


def test_the_variables_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_process()
    assert os.environ | ENVIRONMENT == os.environ


def test_dynamo_is_off_even_where_it_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    prepare_process()
    assert torch._dynamo.config.disable


def test_nobody_is_told_of_the_use() -> None:
    assert ENVIRONMENT["VLLM_NO_USAGE_STATS"] == ENVIRONMENT["DO_NOT_TRACK"] == "1"


def test_the_environment_is_known_without_torch_or_vllm() -> None:
    code = "import sys, workers.engine.environment; print('torch' in sys.modules, 'vllm' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
