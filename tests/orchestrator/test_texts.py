"""Texts resolved to what enters keys, and everything refused before a cell starts."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import ConfigError
from conf.schema import CalibrationConf, SuiteConf, TextConf
from orchestrator import paths, texts
from orchestrator.texts import check_calibration, check_suite, resolve_benchmark, resolve_text
from workers.api import TextRef
from workers.datasets import Split, load_content, verified
from workers.errors import BadInputError, PrerequisiteError

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 100_000


def words(path: Path, count: int) -> Path:
    path.write_text("word " * count, encoding="utf-8")
    return path


def calibration(source: str, num_sequences: int, sequence_length: int) -> CalibrationConf:
    return CalibrationConf(name="test", source=source, num_sequences=num_sequences, sequence_length=sequence_length)


def suite(source: str, sequence_length: int) -> SuiteConf:
    return SuiteConf(name="test", sequence_length=sequence_length, perplexity={"mine": TextConf(source=source)})


def refuse_network(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("asked the hub")


# --- resolving -------------------------------------------------------------------------------------------------------


def test_a_local_text_is_known_by_its_content_not_its_path(tmp_path: Path) -> None:
    file = words(tmp_path / "one.txt", 5)
    ref = resolve_text("text", str(file), split="train", online=True)
    assert ref == TextRef("text", str(file), hashlib.sha256(b"word " * 5).hexdigest())
    copy = words(tmp_path / "two.txt", 5)
    assert resolve_text("text", str(copy), split="train", online=True).fingerprint == ref.fingerprint
    other = words(tmp_path / "three.txt", 6)
    assert resolve_text("text", str(other), split="train", online=True).fingerprint != ref.fingerprint


def test_a_resolved_text_can_be_loaded(tmp_path: Path) -> None:
    file = words(tmp_path / "text.txt", 3)
    assert load_content(resolve_text("text", str(file), split="test", online=True)) == "word word word "


@pytest.mark.parametrize("name", ["grüße 文本.txt", "a b=c, d.txt", "zoo.txt"])
def test_any_file_name_is_resolved(tmp_path: Path, name: str) -> None:
    file = words(tmp_path / name, 3)
    assert resolve_text("text", str(file), split="train", online=True).location == str(file)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words(tmp_path / "text.txt", 3)
    monkeypatch.chdir(tmp_path)
    assert resolve_text("text", "text.txt", split="train", online=True).location == str(tmp_path / "text.txt")


def test_a_zoo_path_is_a_file_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zoo_path(name: str) -> Path:
        return words(tmp_path / name, 3)

    monkeypatch.setattr(paths, "zoo_path", zoo_path)
    ref = resolve_text("text", "zoo:held_out.txt", split="test", online=True)
    assert ref.location == str(tmp_path / "held_out.txt")


def test_a_folder_of_images_is_known_by_every_file_in_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "images").mkdir(parents=True)
        (tmp_path / name / "images" / "a.png").write_bytes(b"pixels")
    refs = [resolve_text("images", str(tmp_path / name), split="train", online=True) for name in ("one", "two")]
    assert refs[0].fingerprint == refs[1].fingerprint
    assert verified(refs[1]) == tmp_path / "two"
    (tmp_path / "two" / "images" / "a.png").write_bytes(b"others")
    changed = resolve_text("images", str(tmp_path / "two"), split="train", online=True)
    assert changed.fingerprint != refs[1].fingerprint
    with pytest.raises(BadInputError, match="not what the sweep resolved"):
        verified(refs[1])


def test_questions_that_cannot_be_read_are_refused_before_a_cell_starts(tmp_path: Path) -> None:
    (tmp_path / "questions.json").write_text("[]")
    ref = resolve_text("images", str(tmp_path), split="train", online=True)
    with pytest.raises(ConfigError, match=r"calibration.path: .*a list of questions is needed"):
        check_calibration(calibration("images", 1, 32), ref, None, VOCAB_SIZE)


def test_an_unknown_zoo_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="mini_lama"):
        resolve_text("text", "zoo:mini_lama/held_out.txt", split="test", online=True)


@pytest.mark.parametrize(
    ("source", "split", "fingerprint"),
    [
        ("c4", "train", "allenai/c4@unresolved/en/c4-train.00000-of-01024.json.gz"),
        ("c4", "test", "allenai/c4@unresolved/en/c4-validation.00000-of-00008.json.gz"),
        ("c4_new", "test", "allenai/c4@unresolved/en/c4-validation.00000-of-00008.json.gz"),
        (
            "wikitext2",
            "train",
            "Salesforce/wikitext@unresolved/wikitext-2-raw-v1/train-00000-of-00001.parquet",
        ),
        (
            "wikitext2",
            "test",
            "Salesforce/wikitext@unresolved/wikitext-2-raw-v1/test-00000-of-00001.parquet",
        ),
    ],
)
def test_a_plan_asks_no_hub(source: str, split: Split, fingerprint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "hf_hub_download", refuse_network)
    assert resolve_text(source, None, split=split, online=False) == TextRef(source, None, fingerprint)


def test_a_hub_text_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        commit_hash = "0123abcd"

    def download(repo: str, file: str, *, repo_type: str, dry_run: bool) -> Answer:
        assert (repo, repo_type, dry_run) == ("Salesforce/wikitext", "dataset", True)
        return Answer()

    monkeypatch.setattr(texts, "hf_hub_download", download)
    ref = resolve_text("wikitext2", None, split="test", online=True)
    assert ref.location is None
    assert ref.fingerprint == "Salesforce/wikitext@0123abcd/wikitext-2-raw-v1/test-00000-of-00001.parquet"


def test_a_benchmark_of_images_is_known_by_its_data_set_s_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        commit_hash = "0123abcd"

    def download(repo: str, file: str, *, repo_type: str, dry_run: bool) -> Answer:
        assert (repo, file, repo_type, dry_run) == ("lmms-lab/POPE", "README.md", "dataset", True)
        return Answer()

    monkeypatch.setattr(texts, "hf_hub_download", download)
    wanted = TextRef("image_benchmark", None, "lmms-lab/POPE@0123abcd/default/test")
    assert resolve_benchmark("pope", online=True) == wanted
    monkeypatch.setattr(texts, "hf_hub_download", refuse_network)
    assert resolve_benchmark("pope", online=False).fingerprint == "lmms-lab/POPE@unresolved/default/test"


def test_a_benchmark_out_of_reach_can_be_had_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PrerequisiteError, match=r"data set lmms-lab/GQA: .*\n  .*suite=image_questions suite.path=<"):
        resolve_benchmark("gqa", online=True)


@pytest.mark.parametrize(("split", "key"), [("train", "calibration.path="), ("test", "suite.perplexity.<name>.path=")])
def test_a_hub_out_of_reach_is_a_missing_prerequisite_with_the_next_step(
    split: Split, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="cannot reach the data set allenai/c4") as caught:
        resolve_text("c4", None, split=split, online=True)
    assert key in str(caught.value)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["text", "tokens"])
@pytest.mark.parametrize(("split", "key"), [("train", "calibration.path="), ("test", "suite.path=")])
def test_a_source_of_the_users_own_needs_a_path(source: str, split: Split, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        resolve_text(source, None, split=split, online=True)


@pytest.mark.parametrize(("source", "split", "near"), [("wikitext", "train", "wikitext2"), ("token", "test", "tokens")])
def test_an_unknown_source_names_the_nearest(source: str, split: Split, near: str) -> None:
    with pytest.raises(ConfigError, match=f"no source `{source}`; did you mean {near}"):
        resolve_text(source, None, split=split, online=True)


def test_the_second_c4_variant_is_for_scoring_only() -> None:
    with pytest.raises(ConfigError, match="calibration text: no source `c4_new`; valid: c4, c4_short,"):
        resolve_text("c4_new", None, split="train", online=True)


@pytest.mark.parametrize("source", ["c4", "wikitext2", "text", "tokens"])
def test_missing_empty_and_unreadable_files_are_refused_by_path(tmp_path: Path, source: str) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(100))
    for path in (tmp_path / "missing", tmp_path, empty, zeros):
        with pytest.raises(ConfigError, match=str(path)) as caught:
            resolve_text(source, str(path), split="train", online=True)
        assert "calibration.path" in str(caught.value)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = words(tmp_path / "secret.txt", 3)

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ConfigError, match=r"calibration.path.*Permission denied.*secret\.txt"):
        resolve_text("text", str(file), split="train", online=True)


@pytest.mark.parametrize(("split", "shape"), [("train", (100,)), ("test", (4, 25)), ("train", (1, 10, 10))])
def test_tokens_need_the_number_of_axes_of_their_use(tmp_path: Path, split: Split, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros(shape, dtype=np.uint16))
    with pytest.raises(ConfigError, match="has shape"):
        resolve_text("tokens", str(tmp_path / "tokens.npy"), split=split, online=True)


def test_pickled_tokens_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match=r"tokens\.npy"):
        resolve_text("tokens", str(tmp_path / "tokens.npy"), split="test", online=True)


# --- too short for one window ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False], ids=["tokenizer", "bytes"])
def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path, shared: Path, exact: bool) -> None:
    file = words(tmp_path / "short.txt", 20)
    tokenizer = shared / "models" / "mini_reference" / "tokenizer.json" if exact else None
    train = resolve_text("text", str(file), split="train", online=True)
    with pytest.raises(ConfigError, match=f"{file}: at most .* lower calibration.sequence_length"):
        check_calibration(calibration("text", 2, 256), train, tokenizer, VOCAB_SIZE)
    with pytest.raises(ConfigError, match=f"suite.perplexity.mine, {file}: at most .* lower suite.sequence_length"):
        check_suite(suite("text", 256), {"mine": train}, tokenizer, VOCAB_SIZE)


def test_the_tokenizer_sees_what_bytes_do_not(tmp_path: Path, shared: Path) -> None:
    ref = resolve_text("text", str(words(tmp_path / "short.txt", 60)), split="train", online=True)  # 300 bytes
    check_calibration(calibration("text", 2, 256), ref, None, VOCAB_SIZE)
    tokenizer = shared / "models" / "mini_reference" / "tokenizer.json"
    with pytest.raises(ConfigError, match="at most"):
        check_calibration(calibration("text", 2, 256), ref, tokenizer, VOCAB_SIZE)


@pytest.mark.parametrize("name", ["mini_reference", "stories260k"])
def test_a_long_text_passes_the_check(shared: Path, name: str) -> None:
    tokenizer = shared / "models" / name / "tokenizer.json"
    file = shared / "data" / "tinystories" / "calibration.txt"
    ref = resolve_text("text", str(file), split="train", online=True)
    check_calibration(calibration("text", 128, 2048), ref, tokenizer, VOCAB_SIZE)
    check_suite(suite("text", 2048), {"mine": ref}, tokenizer, VOCAB_SIZE)


def test_documents_are_checked_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "c4.json.gz"
    with gzip.open(file, "wt") as stream:
        stream.writelines(json.dumps({"text": "abc " * n}) + "\n" for n in (5, 30, 5))
    ref = resolve_text("c4", str(file), split="train", online=True)
    check_calibration(calibration("c4", 1, 100), ref, None, VOCAB_SIZE)
    with pytest.raises(ConfigError, match="at most 121 tokens"):
        check_calibration(calibration("c4", 1, 121), ref, None, VOCAB_SIZE)
    joined = TextRef("c4_new", ref.location, ref.fingerprint)
    check_suite(suite("c4_new", 150), {"mine": joined}, None, VOCAB_SIZE)


def test_given_tokens_must_fill_the_windows(tmp_path: Path) -> None:
    file = tmp_path / "tokens.npy"
    np.save(file, np.zeros((8, 16), dtype=np.uint16))
    ref = resolve_text("tokens", str(file), split="train", online=True)
    check_calibration(calibration("tokens", 8, 16), ref, None, VOCAB_SIZE)
    for rows, length in ((9, 16), (8, 32)):
        with pytest.raises(ConfigError, match=r"tokens.npy: calibration tokens have shape \[8, 16\]"):
            check_calibration(calibration("tokens", rows, length), ref, None, VOCAB_SIZE)


def test_a_token_stream_must_fill_one_window(tmp_path: Path) -> None:
    file = tmp_path / "tokens.npy"
    np.save(file, np.zeros(100, dtype=np.uint16))
    ref = resolve_text("tokens", str(file), split="test", online=True)
    check_suite(suite("tokens", 100), {"mine": ref}, None, VOCAB_SIZE)
    with pytest.raises(ConfigError, match="at most 100 tokens"):
        check_suite(suite("tokens", 101), {"mine": ref}, None, VOCAB_SIZE)


@pytest.mark.parametrize(("rows", "length"), [(0, 256), (-1, 256), (8, 1), (8, -5)])
def test_windows_need_a_size(rows: int, length: int) -> None:
    ref = resolve_text("c4", None, split="train", online=False)
    with pytest.raises(ConfigError, match=f"calibration.num_sequences={rows} calibration.sequence_length={length}"):
        check_calibration(calibration("c4", rows, length), ref, None, VOCAB_SIZE)
    if length < 2:
        with pytest.raises(ConfigError, match=f"suite.sequence_length={length}"):
            check_suite(suite("c4", length), {"mine": ref}, None, VOCAB_SIZE)


def test_resolving_needs_no_torch() -> None:
    code = (
        "import sys, orchestrator.texts; print(sorted({'torch', 'transformers', 'vllm', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
