"""Tokenizer and config of a directory, and what they say when the files are not what they should be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.workers.tiny_requests import edit_config, model_ref
from workers.api import ModelRef
from workers.errors import BadInputError, TransientError
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


def test_a_hub_that_does_not_answer_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TransientError, match="the hub did not deliver organisation/name@0123"):
        local_directory(ModelRef("name", "organisation/name", "llama", "fingerprint", revision="0123"))


def test_a_repository_that_the_hub_refuses_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2
    from huggingface_hub.errors import GatedRepoError

    def refuse(*args: Any, **kwargs: Any) -> None:
        request = httpx2.Request("GET", "https://hub.invalid")
        raise GatedRepoError("403", response=httpx2.Response(403, request=request))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BadInputError, match="hf auth login"):
        local_directory(ModelRef("name", "organisation/name", "llama", "fingerprint", revision="0123"))
