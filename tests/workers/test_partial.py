"""An unfinished checkpoint: what is whole is taken up, what is not is removed, and the codes are the same."""

import dataclasses
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.tiny_requests import request_for, shard_bytes, write_llama
from workers import checkpoint as ck
from workers import partial
from workers.api import LayerReport, QuantizeRequest
from workers.layout import MANIFEST, checkpoint_directory, partial_directory
from workers.pipeline import quantize

REPORT = LayerReport(0, "mlp.up_proj", "round=gptq", 3, None, 3.5, 6144, 512, 0.01, 0, 0.25, 0.5, False, None, 0.1)
STREAMS = {"calibration.0": torch.arange(6.0).reshape(1, 2, 3)}


def save_blocks(directory: Path, count: int) -> None:
    directory.mkdir(exist_ok=True)
    for index in range(count):
        report = dataclasses.replace(REPORT, block=index)
        partial.save_block(directory, index, {f"blocks.{index}.codes": torch.full((4,), index)}, [report], STREAMS)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_nothing_to_take_up_is_an_empty_directory(tmp_path: Path) -> None:
    assert partial.take_up(tmp_path / "new") == ([], {})
    assert names(tmp_path / "new") == []


def test_nothing_grows_where_there_is_no_storage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        partial.take_up(partial_directory(tmp_path, "key"))
    assert names(tmp_path) == []


def test_saved_blocks_are_taken_up(tmp_path: Path) -> None:
    save_blocks(tmp_path, 2)
    reports, streams = partial.take_up(tmp_path)
    assert reports == [[REPORT], [dataclasses.replace(REPORT, block=1)]]
    assert torch.equal(streams["calibration.0"], STREAMS["calibration.0"])
    assert partial.shard_files(tmp_path, 2) == {
        "blocks.0.codes": "block-00000.safetensors",
        "blocks.1.codes": "block-00001.safetensors",
    }


def test_a_baseline_has_no_shards_but_is_taken_up_too(tmp_path: Path) -> None:
    partial.save_block(tmp_path, 0, {}, [], STREAMS)
    assert partial.take_up(tmp_path)[0] == [[]]
    assert names(tmp_path) == ["block-00000.json", "streams.safetensors"]


def test_cleaning_leaves_the_shards_only(tmp_path: Path) -> None:
    save_blocks(tmp_path, 2)
    partial.clean(tmp_path)
    assert names(tmp_path) == ["block-00000.safetensors", "block-00001.safetensors"]


def test_what_a_killed_worker_was_writing_is_removed(tmp_path: Path) -> None:
    save_blocks(tmp_path, 1)
    (tmp_path / ".block-00001.safetensors.4711").write_bytes(b"half a sh")
    (tmp_path / "block-00001.safetensors").write_bytes(b"a shard whose streams were not saved any more")
    reports, _ = partial.take_up(tmp_path)
    assert len(reports) == 1
    assert not (tmp_path / ".block-00001.safetensors.4711").exists()


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["block-00000.safetensors", "block-00001.json", "streams.safetensors"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_bytes(b"noise")])
def test_a_damaged_file_means_the_first_block_again(
    name: str, damage: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_blocks(tmp_path, 2)
    damage(tmp_path / name)
    assert partial.take_up(tmp_path) == ([], {})
    assert names(tmp_path) == []
    assert "starting with the first block" in caplog.text


# --- through the pipeline --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def uninterrupted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    storage = tmp_path_factory.mktemp("uninterrupted")
    quantize(request_for(tiny_llama, storage, "gptq"))
    return shard_bytes(checkpoint_directory(storage, "key"))


def killed_while_writing(call: int, request: QuantizeRequest) -> None:
    """Quantize up to the given call that writes tensors, of which half a file remains."""
    calls = 0
    save = ck.save_tensors

    def interrupted(path: Path, *args: Any) -> None:
        nonlocal calls
        if calls == call:
            path.with_name(f".{path.name}.4711").write_bytes(b"half")
            raise Killed
        calls += 1
        save(path, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial, "save_tensors", interrupted)
        with pytest.raises(Killed):
            quantize(request)


@pytest.mark.parametrize("call", range(6))  # shard and streams of each of three blocks
def test_killed_while_writing_anything_it_resumes_with_the_same_bytes(
    call: int, tiny_llama: Path, tmp_path: Path, uninterrupted: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = request_for(tiny_llama, tmp_path, "gptq")
    killed_while_writing(call, request)
    manifest = quantize(request)
    assert manifest is not None
    assert ("resuming after block" in caplog.text) == (call >= 2)
    checkpoint = checkpoint_directory(tmp_path, "key")
    assert shard_bytes(checkpoint) == uninterrupted
    assert sorted(manifest.files) == [n for n in names(checkpoint) if n != MANIFEST]
    assert [r.block for r in manifest.layer_reports] == [i for i in range(3) for _ in range(7)]


def test_what_was_saved_is_not_computed_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workers.block as block

    request = request_for(tiny_llama, tmp_path, "gptq")
    killed_while_writing(4, request)  # two blocks are whole
    quantized: list[str] = []
    one = block._quantize_one

    def counted(*args: Any) -> Any:
        quantized.append(args[0].prefix)
        return one(*args)

    monkeypatch.setattr(block, "_quantize_one", counted)
    quantize(request)
    assert quantized == ["model.layers.2"] * 7


CHILD = "import pickle, sys; from workers.pipeline import quantize; quantize(pickle.load(open(sys.argv[1], 'rb')))"


@pytest.mark.slow
def test_a_process_killed_by_a_signal_resumes_where_it_was_with_the_same_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = write_llama(tmp_path / "model", num_hidden_layers=150)
    killed, whole = (request_for(model, tmp_path / name, "gptq") for name in ("killed", "whole"))
    (tmp_path / "request").write_bytes(pickle.dumps(killed))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = Path(__file__).parents[2]
    worker = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "request")], cwd=root, env=environment)
    tenth = partial_directory(tmp_path / "killed", "key") / "block-00009.json"
    while worker.poll() is None and not tenth.exists():
        time.sleep(0.002)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    assert ck.read_manifest(checkpoint_directory(tmp_path / "killed", "key")) is None
    quantize(killed)
    resumed = [record.args for record in caplog.records if record.msg.startswith("resuming after block")]
    assert len(resumed) == 1 and isinstance(resumed[0], tuple) and 9 <= int(str(resumed[0][0])) < 150
    quantize(whole)
    checkpoints = [checkpoint_directory(tmp_path / name, "key") for name in ("killed", "whole")]
    assert shard_bytes(checkpoints[0]) == shard_bytes(checkpoints[1])
