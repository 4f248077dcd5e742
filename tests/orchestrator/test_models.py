"""From what a user names as a model to what enters keys: by content, never by place, and with every damage named."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from conf.errors import ConfigError
from conf.schema import ModelConf, ShapeConf
from orchestrator.models import content_hash, resolve_model, tokenizer_file
from tests.orchestrator.hand_made import SHAPE, write_checkpoint
from workers.errors import PrerequisiteError


def local(directory: Path, **more: Any) -> ModelConf:
    return ModelConf(**{"name": "hf", "repo": str(directory), **more})


def refusal(conf: ModelConf) -> str:
    with pytest.raises(ConfigError) as refused:
        resolve_model(conf, online=False)
    return str(refused.value)


# --- content ---------------------------------------------------------------------------------------------------------


def test_a_directory_is_known_by_its_content_wherever_it_lies(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "another name")
    there, here = resolve_model(local(copy), online=False).ref, resolve_model(local(checkpoint), online=False).ref
    assert there.fingerprint == here.fingerprint
    assert there.directory != here.directory


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_every_file_of_a_checkpoint_counts(checkpoint: Path, name: str) -> None:
    before = content_hash(checkpoint)
    path = checkpoint / name
    path.write_bytes(path.read_bytes() + b" ")
    changed = content_hash(checkpoint)
    assert changed != before
    path.rename(checkpoint / f"renamed-{name}")
    assert content_hash(checkpoint) not in (before, changed)


def test_files_that_are_no_part_of_a_checkpoint_do_not_count(checkpoint: Path) -> None:
    before = content_hash(checkpoint)
    (checkpoint / "README.md").write_text("about it")
    (checkpoint / "optimizer.pt").write_text("left over")
    (checkpoint / "runs.json").mkdir()
    (checkpoint / ".cache").mkdir()
    assert content_hash(checkpoint) == before


def test_links_count_as_what_they_point_to(checkpoint: Path, tmp_path: Path) -> None:
    """The hub's cache holds a snapshot as links into a store of blobs."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in checkpoint.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert content_hash(snapshot) == content_hash(checkpoint)


# --- names and sizes -------------------------------------------------------------------------------------------------


def test_a_model_of_ones_own_is_called_like_its_directory(checkpoint: Path) -> None:
    model = resolve_model(local(checkpoint), online=False)
    assert (model.ref.name, model.ref.architecture, model.revision_known) == ("tiny", "llama", True)
    assert resolve_model(local(checkpoint, name="mine"), online=False).ref.name == "mine"


def test_sizes_come_from_config_json(checkpoint: Path) -> None:
    shape = resolve_model(local(checkpoint), online=False).shape
    assert (shape.hidden_size, shape.num_hidden_layers, shape.head_dim, shape.torch_dtype) == (64, 2, 32, "float32")


def test_files_of_another_code_are_refused_with_what_to_take(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model", model_type=None, ssm_cfg={})
    assert "take the -hf repository, or convert them" in refusal(local(directory))


def write_parts(directory: Path) -> Path:
    """A VILA in three folders, with the tokenizer beside its language model."""
    write_checkpoint(directory / "llm")
    tower = {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
    config = {
        "model_type": "llava_llama",
        "llm_cfg": json.loads((directory / "llm" / "config.json").read_text()),
        "vision_tower_cfg": {**tower, "image_size": 20, "patch_size": 4},
    }
    (directory / "config.json").write_text(json.dumps(config))
    for part in ("vision_tower", "mm_projector"):
        (directory / part).mkdir()
        shutil.copy(directory / "llm" / "model.safetensors", directory / part)
    return directory


def test_a_model_in_three_folders_is_one_model(tmp_path: Path) -> None:
    directory = write_parts(tmp_path / "vila")
    model = resolve_model(local(directory), online=False)
    assert (model.ref.architecture, model.shape.hidden_size) == ("vila", 64)
    assert tokenizer_file(model.ref) == directory.resolve() / "llm" / "tokenizer.json"
    with (directory / "mm_projector" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert resolve_model(local(directory), online=False).ref.fingerprint != model.ref.fingerprint


def test_a_part_without_weights_is_refused(tmp_path: Path) -> None:
    directory = write_parts(tmp_path / "vila")
    (directory / "vision_tower" / "model.safetensors").unlink()
    assert "vision_tower: no .safetensors file" in refusal(local(directory))


def test_a_shape_in_the_configuration_wins_and_must_be_sizes(checkpoint: Path) -> None:
    shape = ShapeConf(hidden_size=8, num_hidden_layers=1, vocab_size=16, max_position_embeddings=32)
    assert resolve_model(local(checkpoint, shape=shape), online=False).shape == shape
    shape.num_hidden_layers = 0
    assert "model.shape.num_hidden_layers=0" in refusal(local(checkpoint, shape=shape))


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "config.json: no `hidden_size`"),
        ({"vocab_size": None}, "config.json: no `vocab_size`"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two' is not a whole number of at least 1"),
        ({"hidden_size": 0}, "hidden_size=0 is not a whole number of at least 1"),
        ({"intermediate_size": 1.5}, "intermediate_size=1.5 is not a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads=True is not a whole number"),
        ({"max_position_embeddings": [64]}, "max_position_embeddings=[64] is not a whole number"),
    ],
)
def test_a_size_that_is_none_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(local(write_checkpoint(tmp_path / "damaged", **changes)))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_damaged_config_is_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "config.json").write_bytes(content)
    assert f"{checkpoint}/config.json" in refusal(local(checkpoint))


def test_a_directory_without_a_config_is_no_model(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "no config.json; a Hugging Face model directory is needed" in refusal(local(checkpoint))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    said = refusal(local(checkpoint))
    assert "can run code when loaded" in said
    command = re.search(r'python -c "(.+)"', said)
    assert command is not None
    compile(command[1], "the command", "exec")
    assert f"from_pretrained('{checkpoint}'" in command[1]
    assert f"save_pretrained('{checkpoint}-safetensors')" in command[1]


def test_pickles_beside_safetensors_do_not_matter(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").touch()
    resolve_model(local(checkpoint), online=False)


def test_a_directory_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "no .safetensors file" in refusal(local(checkpoint))


def test_a_missing_tokenizer_is_refused_unless_one_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "no tokenizer.json or tokenizer.model" in refusal(local(checkpoint))
    assert resolve_model(local(checkpoint, tokenizer="some/tokenizer"), online=False).ref.tokenizer == "some/tokenizer"


@pytest.mark.parametrize("repo", ["/no/such/directory", "./models/none", "~/none", "a/b/c", "just-a-name"])
def test_what_is_neither_directory_nor_hub_id_is_refused(repo: str) -> None:
    assert "no such directory, and not a hub id of the form organisation/name either" in refusal(ModelConf("hf", repo))


def test_a_model_that_does_not_ship_is_refused_with_those_that_do() -> None:
    assert "mini_llama" in refusal(ModelConf("x", "zoo:mini_lama"))


# --- the hub ---------------------------------------------------------------------------------------------------------

SIZES = ShapeConf(**{k: v for k, v in SHAPE.items() if k not in ("model_type", "dtype")})  # type: ignore[arg-type]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_planning_a_hub_model_asks_nobody() -> None:
    model = resolve_model(ModelConf("m", "a/b", architecture="llama", shape=SIZES), online=False)
    assert (model.ref.fingerprint, model.ref.directory, model.revision_known) == ("a/b@unresolved", None, False)
    pinned = resolve_model(ModelConf("m", "a/b", revision="c0ffee", shape=SIZES), online=False)
    assert pinned.ref.fingerprint == "a/b@c0ffee"


@pytest.mark.usefixtures("no_network")
def test_a_hub_model_of_unknown_size_cannot_be_planned() -> None:
    assert "start from a model of its size: model=llama2-7b model.repo=a/b" in refusal(ModelConf("hf", "a/b"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Callable[[Exception | None], None]:
    """A hub that has one commit of every model, or fails with an error."""

    def install(error: Exception | None) -> None:
        def model_info(self: Any, repo: str, *, revision: str | None) -> Any:
            if error is not None:
                raise error
            return type("Info", (), {"sha": "c0ffee"})()

        def download(repo: str, file: str, *, revision: str) -> str:
            assert revision == "c0ffee"
            return str(checkpoint / file)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return install


def test_a_hub_model_is_known_by_its_commit(hub: Callable[[Exception | None], None]) -> None:
    hub(None)
    model = resolve_model(ModelConf("hf", "organisation/name"), online=True)
    assert (model.ref.name, model.ref.fingerprint, model.ref.revision) == ("name", "organisation/name@c0ffee", "c0ffee")
    assert (model.ref.architecture, model.shape.hidden_size, model.revision_known) == ("llama", 64, True)


RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.example/a/b"))


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (GatedRepoError("g", response=RESPONSE), PrerequisiteError, "hf auth login"),
        (
            RepositoryNotFoundError("r", response=RESPONSE),
            ConfigError,
            "a/b: the hub has no such repository",
        ),
        (RevisionNotFoundError("v", response=RESPONSE), ConfigError, "model.revision=v9: a/b has no such revision"),
        (RemoteEntryNotFoundError("e", response=RESPONSE), ConfigError, "no config.json"),
        (httpx2.ConnectError("no route"), PrerequisiteError, "did not answer for a/b"),
        (httpx2.ReadTimeout("slow"), PrerequisiteError, "model.repo=<directory>"),
        (OfflineModeIsEnabled("HF_HUB_OFFLINE=1"), PrerequisiteError, "did not answer"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else None,
)
def test_what_the_hub_answers_is_said_with_what_to_do(
    hub: Callable[[Exception | None], None], error: Exception, kind: type[Exception], said: str
) -> None:
    hub(error)
    with pytest.raises(kind, match=re.escape(said)):
        resolve_model(ModelConf("hf", "a/b", revision="v9"), online=True)
