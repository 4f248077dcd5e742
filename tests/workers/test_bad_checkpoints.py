"""Checkpoints whose damage only a cell can find: it fails with BAD_INPUT, naming the file, and is no defect of ours."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.tiny_requests import edit_config, random_windows, request_for
from workers.api import FailureKind
from workers.entry import quantize_stage

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
Damage = Callable[[Path], object]


def content(file: str, data: bytes) -> Damage:
    return lambda model: (model / file).write_bytes(data)


def truncated(model: Path) -> None:
    path = model / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """The weights with some tensors removed, added or of another form."""

    def damage(model: Path) -> None:
        tensors = load_file(model / WEIGHTS)
        change(tensors)
        save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})

    return damage


def indexed(weight_map: object) -> Damage:
    return content(INDEX, json.dumps({"weight_map": weight_map}).encode())


def in_place_of_a_file(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()


CASES: dict[str, tuple[Damage, list[str]]] = {
    "no bytes": (content(WEIGHTS, b""), [WEIGHTS, "0 bytes"]),
    "three bytes": (content(WEIGHTS, b"\1\0\0"), [WEIGHTS, "3 bytes"]),
    "a header beyond all files": (content(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), [WEIGHTS, "header"]),
    "a header that is no JSON": (content(WEIGHTS, struct.pack("<Q", 5) + b"{}xyz"), [WEIGHTS, "header"]),
    "a pointer of git-lfs": (content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), [WEIGHTS, "header"]),
    "a truncated file": (truncated, [WEIGHTS, "its header promises"]),
    "a directory in its place": (in_place_of_a_file, [WEIGHTS]),
    "no tensors at all": (changed(dict.clear), ["model.embed_tokens"]),
    "a tensor missing": (changed(lambda t: t.pop(NORM)), ["model.norm", "does not fit config.json"]),
    "a block missing": (
        changed(lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name]),
        ["model.layers.1", "does not fit config.json"],
    ),
    "a tensor of another shape": (changed(lambda t: t.update({NORM: torch.ones(3)})), ["model.norm", "size mismatch"]),
    "an index that is no JSON": (content(INDEX, b"{"), [INDEX, "not a safetensors index"]),
    "an index of nothing": (content(INDEX, b"{}"), [INDEX, "not a safetensors index"]),
    "an index that is a list": (content(INDEX, b"[]"), [INDEX, "not a safetensors index"]),
    "a map that is a list": (indexed([]), [INDEX, "not a safetensors index", "weight_map is a list"]),
    "a map of numbers": (indexed({NORM: 3}), [INDEX, "not a safetensors index", NORM]),
    "a map out of the directory": (indexed({NORM: "../../etc/passwd"}), [INDEX, "../../etc/passwd"]),
    "a shard missing": (indexed({NORM: "model-2.safetensors"}), ["model-2.safetensors: shard is missing", NORM]),
    "a tensor that its shard does not hold": (
        indexed({"model.embed_tokens.weight": WEIGHTS, NORM: WEIGHTS, "lm_head.weight": WEIGHTS, "x": WEIGHTS}),
        ["model.layers.0"],
    ),
    "more blocks than config.json says": (lambda m: edit_config(m, num_hidden_layers=2), ["2 blocks", "hold 3"]),
    "fewer blocks than config.json says": (lambda m: edit_config(m, num_hidden_layers=4), ["model.layers.3"]),
    "another hidden size": (lambda m: edit_config(m, hidden_size=32), ["does not fit config.json"]),
    "a config.json that Transformers refuses": (
        lambda m: edit_config(m, hidden_act="nope"),
        ["config.json: Transformers cannot build its model", "nope"],
    ),
    "a tokenizer that is none": (content("tokenizer.json", b"{}"), ["tokenizer"]),
}


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_fails_with_its_file(case: str, model: Path, tmp_path: Path) -> None:
    damage, said = CASES[case]
    damage(model)
    failure = quantize_stage(request_for(model, tmp_path / "storage", "rtn"))
    assert failure is not None
    assert failure.kind is FailureKind.BAD_INPUT, failure.traceback
    assert [words for words in said if words not in failure.message] == [], failure.message


def test_tokens_beyond_the_vocabulary_fail_with_their_place(model: Path, tmp_path: Path) -> None:
    windows = random_windows(2, 16)
    windows[1, 3] = 5000
    failure = quantize_stage(request_for(model, tmp_path / "storage", "rtn", windows=windows))
    assert failure is not None and failure.kind is FailureKind.BAD_INPUT
    assert "token id 5000 in window 1, position 3" in failure.message
