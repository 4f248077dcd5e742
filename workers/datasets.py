"""The IO behind token windows: from a resolved text to its content.

What a file is decided by its source and its first bytes, never by its name: keys hold the content hash, not the path.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
from huggingface_hub import hf_hub_download

from workers.api import TextRef
from workers.errors import BadInputError
from workers.hub import data_set_of_hub

Split = Literal["train", "test"]  # calibrate on | score on; C4 calls the second one validation
Content = str | list[str] | npt.NDArray[np.integer[Any]]  # one stream | documents | token ids

DOCUMENTS = ("c4", "c4_new", "c4_short")  # sources in C4's layout

IMAGES = "images"  # a folder in the layout of workers.image_questions

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
LINES_MAGIC = b'{"te'  # JSON lines of {"text": ...}: documents that stand for a stream
NPY_MAGIC = b"\x93NUM"
ZIP_MAGIC = b"PK"
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class HubFile:
    """One file of a data set on the hub. Its fingerprint is <repo>@<commit>/<file>."""

    repo: str
    file: str

    def fingerprint(self, commit: str) -> str:
        return f"{self.repo}@{commit}/{self.file}"


# The hub's copy of each source; sources of the user's own files have None.
_C4_TRAIN = HubFile("allenai/c4", "en/c4-train.00000-of-01024.json.gz")
_C4_TEST = HubFile("allenai/c4", "en/c4-validation.00000-of-00008.json.gz")
HUB_FILES: dict[Split, dict[str, HubFile | None]] = {
    "train": {
        "c4": _C4_TRAIN,
        "c4_short": _C4_TRAIN,
        "wikitext2": HubFile("Salesforce/wikitext", "wikitext-2-raw-v1/train-00000-of-00001.parquet"),
        "text": None,
        "tokens": None,
        IMAGES: None,
    },
    "test": {
        "c4": _C4_TEST,
        "c4_new": _C4_TEST,
        "wikitext2": HubFile("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet"),
        "text": None,
        "tokens": None,
    },
}


def load_content(ref: TextRef) -> Content:
    """The content of a resolved text: documents for DOCUMENTS, an integer array for tokens, else one string.

    Raises BadInputError when the file is damaged, of the wrong kind, not on this node or no longer the one that was
    resolved; TransientError when the hub does not answer, PrerequisiteError when it refuses; OSError as the system
    gives it, a full disk included.
    """
    return read_content(ref.source, _download(ref) if ref.location is None else verified(ref))


def read_content(source: str, path: Path) -> Content:
    """Read a file in the layout of `source`. Raises BadInputError, and OSError as the system gives it."""
    if path.stat().st_size == 0:
        raise BadInputError(f"{path} is empty")
    if source in DOCUMENTS:
        documents = list(read_documents(path))
        if not documents:
            raise BadInputError(f"{path} holds no documents")
        return documents
    if source == "tokens":
        return read_tokens(path)
    if source == "wikitext2" and _magic(path) == PARQUET_MAGIC:
        return _read_wikitext_parquet(path)
    if _magic(path) == LINES_MAGIC:
        return "\n\n".join(read_documents(path))
    return read_text(path)


def read_text(path: Path) -> str:
    """A UTF-8 file as it is (line ends untouched), without its byte order mark."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start}"
        ) from error
    if "\0" in text:
        raise BadInputError(f"{path} is not text: NUL byte at offset {content.index(0)}")
    return text.removeprefix(BYTE_ORDER_MARK)


def read_documents(path: Path) -> Iterator[str]:
    """The `text` of every line of a JSON-lines file, gzipped or not (C4's layout), one at a time."""
    compressed = _magic(path).startswith(GZIP_MAGIC)
    with cast(BinaryIO, gzip.open(path, "rb")) if compressed else path.open("rb") as stream:
        number = 0
        while True:
            try:
                line = stream.readline()
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise BadInputError(f"{path}: damaged gzip after line {number}: {error}") from error
            if not line:
                return
            number += 1
            yield _document(line, path, number)


def read_tokens(path: Path) -> npt.NDArray[np.integer[Any]]:
    """An integer .npy as it is, mapped into memory; never unpickled."""
    if _magic(path).startswith(ZIP_MAGIC):
        raise BadInputError(f"{path} is an archive; token ids come as one .npy array")
    if not _magic(path).startswith(NPY_MAGIC):
        raise BadInputError(f"{path} is not a .npy file of integers; numpy.save writes one")
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInputError(f"{path} is not a whole .npy file of integers: {error}") from error
    if array.dtype.kind not in "iu":
        raise BadInputError(f"{path} holds {array.dtype}, not integers")
    return array


def content_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(directory: Path) -> str:
    """sha256 over the names and contents of all files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(directory)}\0{content_hash(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def verified(ref: TextRef) -> Path:
    """A resolved file or folder, once its content is known to be what the key was made of (on this node, now).

    Raises BadInputError as above.
    """
    assert ref.location is not None
    path = Path(ref.location)
    if not path.exists():
        raise BadInputError(f"{path} is not on this node; put it where every node sees it")
    found = folder_hash(path) if path.is_dir() else content_hash(path)
    if found != ref.fingerprint:
        found, expected = (text.removeprefix("sha256:")[:12] for text in (found, ref.fingerprint))
        raise BadInputError(
            f"{path} is not what the sweep resolved: sha256 {found}... instead of {expected}...; start the sweep again"
        )
    return path


def _read_wikitext_parquet(path: Path) -> str:
    """The `text` column joined with two newlines, empty lines included, as GPTQ and its successors feed it."""
    import pyarrow  # here, because it costs every start of the command line 0.1 s
    import pyarrow.parquet

    try:
        lines = pyarrow.parquet.ParquetFile(path).read(columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise BadInputError(
            f"{path} is not a readable parquet file with a column `text`: {' '.join(str(error).split())}"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str):
            raise BadInputError(f"{path}: row {number} of column `text` is not a string")
    return "\n\n".join(lines)


def _document(line: bytes, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadInputError(f"{path}: line {number} is not JSON: {error}") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise BadInputError(f"{path}: line {number} has no string under `text`")
    return text


def _magic(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4)


def _download(ref: TextRef) -> Path:
    """The hub's file, at the fingerprint's commit, in the hub's cache; the hub's client locks each file it fetches."""
    repo, _, rest = ref.fingerprint.partition("@")
    commit, _, file = rest.partition("/")
    with data_set_of_hub(ref.fingerprint):
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=commit))
