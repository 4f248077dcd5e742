"""Reading texts: the three layouts, and files that are not what they claim to be."""

import gzip
import json
from pathlib import Path

import httpx2
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from workers import datasets
from workers.api import TextRef
from workers.datasets import content_hash, load_content, read_content, read_documents, read_text
from workers.errors import BadInputError, TransientError


def write_documents(path: Path, documents: list[str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": d, "url": "u"}) + "\n" for d in documents)
    return path


def write_parquet(path: Path, columns: dict[str, list[str | None]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def local(source: str, path: Path) -> TextRef:
    return TextRef(source=source, location=str(path), fingerprint=content_hash(path))


# --- contents --------------------------------------------------------------------------------------------------------


def test_the_hub_layout_of_wikitext2_is_joined_with_two_newlines(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "test.parquet", {"text": ["", " = Title = \n", "", " Some words \n"]})
    assert read_content("wikitext2", file) == "\n\n = Title = \n\n\n\n\n Some words \n"


def test_a_raw_wikitext2_file_is_taken_as_it_is(shared: Path) -> None:
    text = read_content("wikitext2", shared / "data" / "wikitext2" / "wiki.test.raw.txt")
    assert isinstance(text, str)
    assert len(text.encode()) == 1_296_370
    assert text.count("\n") == 11_605
    assert text.startswith("\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English film")


def test_the_tokenized_form_of_wikitext2_is_taken_as_it_is(shared: Path) -> None:
    text = read_content("wikitext2", shared / "data" / "wikitext2" / "wiki.valid.tokens")
    assert isinstance(text, str)
    assert len(text.encode()) == 1_121_681
    assert text.startswith(" \n = Homarus gammarus = \n")


def test_c4_shards_load_as_documents(shared: Path) -> None:
    shards = sorted((shared / "data" / "c4").glob("*.json.gz"))
    documents = [document for shard in shards for document in read_documents(shard)]
    assert len(shards) == 3
    assert len(documents) == 30
    assert documents[0].startswith("The woman who died after falling from a bridge over the A21")


def test_c4_without_gzip_is_the_same_documents(tmp_path: Path) -> None:
    packed = write_documents(tmp_path / "c4.json.gz", ["one", "zwei, drei", "四"])
    plain = tmp_path / "c4"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    assert read_content("c4", plain) == read_content("c4", packed) == ["one", "zwei, drei", "四"]


def test_line_ends_stay_and_the_byte_order_mark_goes(tmp_path: Path) -> None:
    file = tmp_path / "windows.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(file) == "one\r\ntwo\rthree\n"


@pytest.mark.parametrize("name", ["grüße 文本.txt", "a b=c, d.txt", "-dash.txt", "no_suffix"])
def test_names_of_files_do_not_matter(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "split=train dir"
    folder.mkdir()
    (folder / name).write_text("words", encoding="utf-8")
    assert load_content(local("text", folder / name)) == "words"
    assert load_content(local("wikitext2", write_parquet(folder / name, {"text": ["a", "b"]}))) == "a\n\nb"


def test_tokens_come_back_as_they_were_saved(tmp_path: Path) -> None:
    tokens = np.arange(12, dtype=np.uint16).reshape(3, 4)
    np.save(tmp_path / "tokens.npy", tokens)
    loaded = load_content(local("tokens", tmp_path / "tokens.npy"))
    assert isinstance(loaded, np.ndarray)
    assert loaded.dtype == np.uint16
    assert np.array_equal(loaded, tokens)


# --- files that are not what they claim to be ------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["c4", "c4_new", "wikitext2", "text", "tokens"])
def test_an_empty_file_is_refused(tmp_path: Path, source: str) -> None:
    file = tmp_path / "empty"
    file.touch()
    with pytest.raises(BadInputError, match=f"{file} is empty"):
        read_content(source, file)


@pytest.mark.parametrize("source", ["c4", "c4_new", "wikitext2", "text", "tokens"])
@pytest.mark.parametrize(
    "content",
    [b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 8, bytes(4096), b"PAR1" + bytes(100) + b"PAR1", b"\x1f\x8b\x08\x00"],
    ids=["elf", "zeros", "parquet", "gzip"],
)
def test_a_binary_file_is_refused_by_name(tmp_path: Path, source: str, content: bytes) -> None:
    file = tmp_path / "binary"
    file.write_bytes(content)
    with pytest.raises(BadInputError, match=str(file)):
        read_content(source, file)


def test_text_that_is_not_utf8_is_refused_with_the_offset(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"caf\xe9 noir")
    with pytest.raises(BadInputError, match="not UTF-8 text: byte 0xe9 at offset 3"):
        read_text(file)


def test_a_truncated_gzip_names_the_last_whole_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.bytes(2000).hex() for _ in range(50)]
    file = write_documents(tmp_path / "c4.json.gz", documents)
    file.write_bytes(file.read_bytes()[:-3000])
    good: list[str] = []
    with pytest.raises(BadInputError, match=r"damaged gzip after line \d+") as caught:
        good.extend(read_documents(file))
    assert good == documents[: len(good)]
    assert f"after line {len(good)}:" in str(caught.value)


def test_a_flipped_bit_in_a_gzip_is_refused(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "c4.json.gz", [f"document {i}" for i in range(100)])
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # in the checksum
    file.write_bytes(content)
    with pytest.raises(BadInputError, match="damaged gzip"):
        read_content("c4", file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is not JSON"),
        ("", "line 2 is not JSON"),
        ('{"txt": "a"}', "line 2 has no string under `text`"),
        ('{"text": 3}', "line 2 has no string under `text`"),
        ('["text"]', "line 2 has no string under `text`"),
    ],
)
def test_a_bad_line_of_c4_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "c4.json"
    file.write_text('{"text": "good"}\n' + line + '\n{"text": "good"}\n')
    with pytest.raises(BadInputError, match=message):
        read_content("c4", file)


def test_a_truncated_parquet_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "test.parquet", {"text": [f"line {i}" for i in range(1000)]})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInputError, match="not a readable parquet file"):
        read_content("wikitext2", file)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"txt": ["a"]}, "with a column `text`"), ({"text": ["a", None]}, "row 2 of column `text` is not a string")],
)
def test_a_parquet_without_text_is_refused(tmp_path: Path, columns: dict[str, list[str | None]], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read_content("wikitext2", write_parquet(tmp_path / "test.parquet", columns))


@pytest.mark.parametrize("array", [np.ones(3), np.array([True]), np.array(["1"]), np.array([{}], dtype=object)])
def test_arrays_that_are_not_integers_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "tokens.npy", array, allow_pickle=True)
    with pytest.raises(BadInputError, match=r"tokens\.npy"):
        read_content("tokens", tmp_path / "tokens.npy")


def test_a_truncated_npy_and_an_archive_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(1000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "tokens.npy").read_bytes()[:-8])
    np.savez(tmp_path / "tokens.npz", tokens=np.arange(10))
    for name in ("cut.npy", "tokens.npz"):
        with pytest.raises(BadInputError, match=name):
            read_content("tokens", tmp_path / name)


def test_a_file_that_changed_or_is_missing_on_this_node_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one")
    ref = local("text", file)
    file.write_text("two")
    with pytest.raises(BadInputError, match="not what the sweep resolved"):
        load_content(ref)
    file.unlink()
    with pytest.raises(BadInputError, match="not on this node"):
        load_content(ref)


# --- the hub ---------------------------------------------------------------------------------------------------------

HUB_REF = TextRef(source="c4", location=None, fingerprint="allenai/c4@0123abcd/en/c4-train.00000-of-01024.json.gz")


def test_the_hub_is_asked_for_the_fingerprints_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_documents(tmp_path / "shard.json.gz", ["from the hub"])
    asked = []

    def download(repo: str, name: str, *, repo_type: str, revision: str) -> str:
        asked.append((repo, name, repo_type, revision))
        return str(file)

    monkeypatch.setattr(datasets, "hf_hub_download", download)
    assert load_content(HUB_REF) == ["from the hub"]
    assert asked == [("allenai/c4", "en/c4-train.00000-of-01024.json.gz", "dataset", "0123abcd")]


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), httpx2.ReadError("peer closed"), RuntimeError("transfer failed")]
)
def test_a_hub_that_does_not_answer_is_worth_another_try(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: str, **kwargs: str) -> str:
        raise error

    monkeypatch.setattr(datasets, "hf_hub_download", download)
    with pytest.raises(TransientError, match="the hub did not deliver allenai/c4@0123abcd/en/"):
        load_content(HUB_REF)


def test_a_full_disk_is_not_taken_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: str, **kwargs: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "hf_hub_download", download)
    with pytest.raises(OSError, match="No space left"):
        load_content(HUB_REF)


@pytest.mark.parametrize("source", ["wikitext2", "text"])
def test_documents_stand_for_a_stream_where_one_is_asked_for(tmp_path: Path, source: str) -> None:
    path = tmp_path / "lines"
    path.write_text('{"text": "one"}\n{"text": "two\\nlines"}\n', encoding="utf-8")
    assert read_content(source, path) == "one\n\ntwo\nlines"
    assert read_content("c4_short", path) == ["one", "two\nlines"]
