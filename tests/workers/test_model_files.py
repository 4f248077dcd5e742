"""Tokenizer and config of a directory, and what they say when the files are not what they should be."""

import dataclasses
import errno
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from tests.workers.tiny_requests import edit_config, model_ref
from workers.api import ModelRef
from workers.errors import BadInputError, PrerequisiteError, TransientError
from workers.model_files import load_config, load_tokenizer, local_directory


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_a_directory_is_taken_as_it_is(model: Path) -> None:
    assert local_directory(model_ref(model)) == model


def test_the_tokenizer_is_the_one_beside_the_weights(model: Path) -> None:
    assert load_tokenizer(model_ref(model), model)("t5 t0 t127")["input_ids"] == [5, 0, 127]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0", "added_tok'])
def test_a_damaged_tokenizer_is_named(model: Path, content: str) -> None:
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(BadInputError, match=f"{model}: tokenizer cannot be loaded"):
        load_tokenizer(model_ref(model), model)


def test_a_tokenizer_that_only_its_library_can_refuse_is_named(model: Path) -> None:
    content: dict[str, Any] = json.loads((model / "tokenizer.json").read_text())
    content["model"]["type"] = "unheard of"
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadInputError, match="tokenizer cannot be loaded"):
        load_tokenizer(model_ref(model), model)


def test_a_defect_of_ours_is_not_blamed_on_the_tokenizer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", broken)
    with pytest.raises(AssertionError, match="ours"):
        load_tokenizer(model_ref(model), model)


@pytest.mark.parametrize("values", [{"model_type": "unheard of"}, {"hidden_size": "64"}])
def test_a_config_that_transformers_refuses_is_named(model: Path, values: dict[str, Any]) -> None:
    edit_config(model, **values)
    with pytest.raises(BadInputError, match=r"config\.json: "):
        load_config(model_ref(model), model)


HUB_MODEL = ModelRef("name", "organisation/name", "llama", "fingerprint", revision="0123456789" * 4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """A server in the hub's place, and an empty cache; the function says which HTTP status and code it answers."""
    answer: list[Any] = [200, ""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.send_header("X-Error-Code", answer[1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def answers(status: int, code: str) -> None:
        answer[:] = [status, code]

    yield answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code"), [(401, ""), (403, "GatedRepo"), (404, "RepoNotFound"), (404, "RevisionNotFound")]
)
def test_a_repository_that_the_hub_refuses_needs_a_person(
    hub: Callable[[int, str], None], status: int, code: str
) -> None:
    hub(status, code)
    with pytest.raises(PrerequisiteError, match=r"does not give organisation/name@.*HF_TOKEN=<file") as raised:
        local_directory(HUB_MODEL)
    assert str(status) in str(raised.value)


def test_a_node_told_to_stay_offline_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PrerequisiteError, match="HF_HUB_OFFLINE"):
        local_directory(HUB_MODEL)


@pytest.mark.parametrize("status", [None, 429, 500, 503])
def test_a_hub_that_does_not_answer_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """The hub's client asks for half a minute before it raises this."""

    def fail(*args: Any, **kwargs: Any) -> None:
        request = httpx2.Request("GET", "https://hub.invalid")
        cause: Exception = httpx2.ConnectError("refused", request=request)
        if status is not None:
            cause = HfHubHTTPError("no", response=httpx2.Response(status, request=request))
        raise LocalEntryNotFoundError("cannot find the snapshot on the local disk") from cause

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(TransientError, match="the hub did not deliver organisation/name@0123"):
        local_directory(HUB_MODEL)


def test_a_full_disk_is_not_taken_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        local_directory(HUB_MODEL)


def test_a_tokenizer_that_the_hub_refuses_is_not_a_damaged_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        request = httpx2.Request("GET", "https://hub.invalid")
        raise OSError("you are trying to access a gated repo") from GatedRepoError(
            "403", response=httpx2.Response(403, request=request)
        )

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(PrerequisiteError, match="the tokenizer organisation/other"):
        load_tokenizer(dataclasses.replace(model_ref(model), tokenizer="organisation/other"), model)
