"""Reading shards that are whole, damaged or missing; the atomic save; the claim on a checkpoint."""

import errno
import json
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.tiny_requests import write_llama
from workers import checkpoint as ck
from workers.api import Canary, Manifest
from workers.checkpoint import CheckpointReader
from workers.errors import BadInputError
from workers.layout import MANIFEST, checkpoint_directory, partial_directory

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several shards with an index."""
    return write_llama(tmp_path_factory.mktemp("sharded") / "model", shard_size="100KB")


@pytest.fixture
def damaged(sharded: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def shard_of(directory: Path, name: str) -> Path:
    index = json.loads((directory / ck.INDEX).read_text())
    return directory / str(index["weight_map"][name])


def manifest(files: dict[str, str]) -> Manifest:
    canary = Canary([[1, 2]], [[-1.0]], [[-1.5]])
    return Manifest("key", "source", "packed", "hash", 2, 3.0, 1, canary, [], files, 1.0, 0.5, {"torch": "2"})


# --- reading ---------------------------------------------------------------------------------------------------------


def test_tensors_of_several_shards_are_those_of_one_file(sharded: Path, tmp_path: Path) -> None:
    single = write_llama(tmp_path / "single")
    reader = CheckpointReader(sharded)
    assert len(set(reader.files.values())) > 3
    expected = load_file(single / ck.SINGLE)
    assert set(reader.files) == set(CheckpointReader(single).files) == set(expected)
    for name, tensor in reader.read(reader.files).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_prefix_ends_at_a_dot(sharded: Path) -> None:
    assert len(CheckpointReader(sharded).names("model.layers.1.")) == 9


def test_bytes_are_those_of_all_shards(sharded: Path) -> None:
    assert CheckpointReader(sharded).num_bytes() == sum(p.stat().st_size for p in sharded.glob("*.safetensors"))


def test_a_truncated_shard_is_named_with_tensor_and_bytes(damaged: Path) -> None:
    shard = shard_of(damaged, DOWN)
    whole = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(whole - 1000)
    with pytest.raises(BadInputError) as caught:
        CheckpointReader(damaged).read([DOWN])
    message = str(caught.value)
    assert shard.name in message and f"`{DOWN}`" in message
    assert f"has {whole - 1000} bytes, its header promises {whole}" in message


def test_a_truncated_single_file_says_the_bytes_it_should_have(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    file = model / ck.SINGLE
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(whole // 2)
    with pytest.raises(BadInputError, match=f"{ck.SINGLE}: .* has {whole // 2} bytes, its header promises {whole}"):
        CheckpointReader(model)


def test_a_header_that_is_noise_is_said_to_be_damaged(damaged: Path) -> None:
    shard_of(damaged, DOWN).write_bytes(bytes(range(256)) * 4)
    with pytest.raises(BadInputError, match="has 1024 bytes, and its header is damaged"):
        CheckpointReader(damaged).read([DOWN])


def test_an_empty_shard_is_said_to_be_damaged(damaged: Path) -> None:
    shard_of(damaged, DOWN).write_bytes(b"")
    with pytest.raises(BadInputError, match="has 0 bytes"):
        CheckpointReader(damaged).read([DOWN])


def test_a_missing_shard_is_named_with_what_the_index_places_in_it(damaged: Path) -> None:
    shard = shard_of(damaged, DOWN)
    shard.unlink()
    with pytest.raises(BadInputError, match=f"{shard.name}: shard is missing; the index places .* tensors in it"):
        CheckpointReader(damaged)


def test_a_tensor_that_the_index_knows_but_its_shard_lacks_is_named(damaged: Path) -> None:
    shard = shard_of(damaged, DOWN)
    tensors = load_file(shard)
    del tensors[DOWN]
    save_file({**tensors, "another": torch.zeros(1)}, shard)
    with pytest.raises(BadInputError, match=f"`{DOWN}`"):
        CheckpointReader(damaged).read([DOWN])


def test_an_unknown_tensor_is_named(sharded: Path) -> None:
    with pytest.raises(BadInputError, match=r"no tensor `model.layers.0.mlp.w1`"):
        CheckpointReader(sharded).read(["model.layers.0.mlp.w1"])


@pytest.mark.parametrize("text", ["{", "{}", "[]", "\x00\xff"])
def test_an_index_that_is_none_is_named(damaged: Path, text: str) -> None:
    (damaged / ck.INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(BadInputError, match=r"index.json: not a safetensors index"):
        CheckpointReader(damaged)


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"neither model.safetensors nor"):
        CheckpointReader(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_saved_tensors_come_back_and_leave_nothing_else_behind(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    ck.save_tensors(tmp_path / "a.safetensors", {"x": transposed}, {"format": "pt"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], transposed)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_that_takes_no_more_is_an_error_of_the_system(tmp_path: Path) -> None:
    """As a full disk is; here a limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            ck.save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and not (tmp_path / "a.safetensors").exists()


def test_a_committed_checkpoint_is_intact_until_a_file_changes(tmp_path: Path) -> None:
    partial, final = partial_directory(tmp_path, "key"), checkpoint_directory(tmp_path, "key")
    partial.mkdir(parents=True)
    (partial / "a").write_text("content")
    written = manifest({"a": ck.sha256(partial / "a")})
    assert ck.read_manifest(final) is None
    ck.commit(partial, final, written)
    assert ck.read_manifest(final) == written and not partial.exists()
    assert ck.damage(final, written) is None
    (final / "a").write_text("c0ntent")
    assert (ck.damage(final, written) or "").startswith(f"{final / 'a'} has 7 bytes of sha256")
    (final / "a").unlink()
    assert ck.damage(final, written) == f"{final / 'a'} is missing"


def test_a_new_checkpoint_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    partial, final = partial_directory(tmp_path, "key"), checkpoint_directory(tmp_path, "key")
    for content in ("old", "new"):
        partial.mkdir(parents=True)
        (partial / content).write_text(content)
        ck.commit(partial, final, manifest({content: ck.sha256(partial / content)}))
    assert sorted(p.name for p in final.iterdir()) == [MANIFEST, "new"]


def test_a_claim_is_waited_for_and_does_not_hold_other_keys_up(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    order: list[str] = []

    def second() -> None:
        with ck.claim(tmp_path, "key"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with ck.claim(tmp_path, "key"):
        waiting.start()
        with ck.claim(tmp_path, "another"):
            waiting.join(timeout=0.2)
            order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_no_claim_makes_a_storage_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), ck.claim(tmp_path, "key"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_finishes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    assert ck.read_manifest(tmp_path) is None
