"""A model and texts of the user's own, small enough to plan in no time, in a directory of results of their own."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conf import register
from conf.schema import AwqScale
from tests.orchestrator.hand_made import write_checkpoint, write_text
from workers.methods.registry import STAGES

_compose = functools.cache(register.compose)
_merged = functools.cache(register._merged.__wrapped__)


@pytest.fixture
def quick_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing is pure and takes 0.1 s: what several tests compose is composed once."""

    def compose(overrides: Sequence[str]) -> register.Composed:
        return _compose(tuple(overrides))

    monkeypatch.setattr(register, "compose", compose)
    monkeypatch.setattr(register, "_merged", _Merged())


class _Merged:
    """Files that do not change are merged once, whatever number of contexts is opened."""

    def __call__(self, options: tuple[str, ...]) -> Any:
        return _merged(options)

    def cache_clear(self) -> None:
        pass


@pytest.fixture
def awq_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """`method=awq` is as if nobody had built its scale yet."""
    monkeypatch.delitem(STAGES, AwqScale)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture
def mine(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a user's own model and texts, one cell of it, from the directory where they lie."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt", 200)
    return [
        "experiment=smoke",
        "name=mine",
        "model=hf",
        f"model.repo=./{checkpoint.name}",
        "calibration=text",
        "calibration.path=text.txt",
        "calibration.num_sequences=2",
        "calibration.sequence_length=32",
        "suite=text",
        "suite.path=text.txt",
        "suite.sequence_length=32",
        "engine=transformers",
        "numerics.device=cpu",
        "method=rtn",
    ]
