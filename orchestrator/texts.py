"""Which text a cell reads: a path or a hub data set, resolved to something that enters keys.

`resolve_text` turns what a user wrote into a TextRef; the two checks refuse, before a cell starts, what cannot fill a
window.
"""

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer

from conf.errors import ConfigError
from conf.schema import CalibrationConf, SuiteConf
from orchestrator.paths import local_path
from workers.api import TextRef
from workers.calibration import C4_NEW_NUM_DOCUMENTS, check_token_ids, given_windows
from workers.datasets import (
    HUB_FILES,
    IMAGES,
    HubFile,
    Split,
    content_hash,
    folder_hash,
    read_content,
    read_documents,
)
from workers.errors import BadInputError, PrerequisiteError
from workers.hub import HUB_ERRORS
from workers.image_benchmarks import IMAGE_BENCHMARKS
from workers.image_questions import CALIBRATED_ON, read_image_questions

UNRESOLVED = "unresolved"
GIVE_FILE: dict[Split, str] = {
    "train": "give calibration.path=<file>",
    "test": "give suite.path=<file> (with suite=text or tokens) or suite.perplexity.<name>.path=<file>",
}
TOKEN_AXES: dict[Split, tuple[str, ...]] = {"train": ("num_sequences", "sequence_length"), "test": ("num_tokens",)}
PATH_KEYS: dict[Split, str] = {"train": "calibration.path", "test": "suite.path (or a text's own path)"}
MAX_SEQUENCES = 1_000_000  # their start positions are drawn one by one and their tokens held in memory
CHARACTERS_PER_TOKEN = 32  # how much of a long text is tokenized before all of it is


def resolve_text(source: str, path: str | None, *, split: Split, online: bool) -> TextRef:
    """A source and path as written -> TextRef. split: train to calibrate on, test to score on.

    A local file (`zoo:<file>`: one shipped with the project) is fingerprinted by its content, the hub's copy by
    repo@commit/file; with online=False the commit stays `unresolved` and nothing leaves this machine. Reads the whole
    file: resolve each text once. Raises ConfigError for a source or file that cannot be meant, PrerequisiteError when
    the hub is asked, does not answer, and has no copy in the cache.
    """
    sources = HUB_FILES[split]
    if source not in sources:
        near = difflib.get_close_matches(source, sources, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        role = "calibration" if split == "train" else "suite"
        raise ConfigError(f"{role} text: no source `{source}`; {hint}valid: {', '.join(sources)}")
    if path is not None:
        return _folder(path) if source == IMAGES else _local(source, path, split)
    hub_file = sources[source]
    if hub_file is None:
        kind = "folder" if source == IMAGES else "file"
        raise ConfigError(f"{PATH_KEYS[split]}: source {source} reads a {kind} of yours: {GIVE_FILE[split]}")
    instead = f"copy {hub_file.file} here by other means and {GIVE_FILE[split]}"
    commit = _commit(hub_file, instead) if online else UNRESOLVED
    return TextRef(source=source, location=None, fingerprint=hub_file.fingerprint(commit))


def resolve_benchmark(task: str, *, online: bool) -> TextRef:
    """The hub's data set of a benchmark about images, by repo@commit; raises as `resolve_text`."""
    benchmark = IMAGE_BENCHMARKS[task]
    instead = (
        "give the questions as folders: suite=image_questions suite.path=<folder of folders>, layout in "
        "workers/image_questions.py"
    )
    commit = _commit(HubFile(benchmark.repo, "README.md"), instead) if online else UNRESOLVED
    return TextRef("image_benchmark", None, benchmark.fingerprint(commit))


def check_calibration(conf: CalibrationConf, ref: TextRef, tokenizer_file: Path | None, vocab_size: int) -> None:
    """Raise ConfigError when the text cannot fill the calibration windows, or tokens are none of the model's.

    tokenizer_file: the model's tokenizer.json; without it, only a text with fewer bytes than a window has tokens is
    refused. The hub's copies are long enough and not read.
    """
    if conf.num_sequences < 1 or conf.sequence_length < 2:
        raise ConfigError(
            f"calibration.num_sequences={conf.num_sequences} calibration.sequence_length={conf.sequence_length}: at "
            "least one sequence of two tokens is needed"
        )
    if conf.num_sequences > MAX_SEQUENCES:
        raise ConfigError(f"calibration.num_sequences={conf.num_sequences}: at most {MAX_SEQUENCES}")
    if ref.location is None:
        return
    if ref.source == IMAGES:
        _check_images(conf, Path(ref.location))
        return
    if ref.source == "tokens":
        array = read_content(ref.source, Path(ref.location))
        assert isinstance(array, np.ndarray)
        try:
            check_token_ids(given_windows(array, conf.num_sequences, conf.sequence_length), vocab_size)
        except BadInputError as error:
            raise ConfigError(f"{ref.location}: {error}") from error
        return
    if ref.source == "c4_short":
        return  # any document can be short; how many are is known once they are tokenized
    longest = _longest(ref, conf.sequence_length + 1, tokenizer_file)
    if longest <= conf.sequence_length:
        raise ConfigError(
            f"{ref.location}: at most {longest} tokens in one piece; random windows of {conf.sequence_length} need at "
            f"least {conf.sequence_length + 1}: lower calibration.sequence_length or give a longer text"
        )


def check_suite(conf: SuiteConf, refs: dict[str, TextRef], tokenizer_file: Path | None, vocab_size: int) -> None:
    """Raise ConfigError when a text of `conf.perplexity` cannot fill one window, or tokens are none of the model's.

    refs: its names -> resolved texts. tokenizer_file as in `check_calibration`.
    """
    if conf.sequence_length < 2:
        raise ConfigError(f"suite.sequence_length={conf.sequence_length}: a window of two tokens is needed")
    for name in conf.perplexity:
        ref = refs[name]
        if ref.location is None:
            continue
        needed = conf.sequence_length + (ref.source == "c4")  # a random crop needs a longer document
        if ref.source == "tokens":
            array = read_content(ref.source, Path(ref.location))
            assert isinstance(array, np.ndarray)
            longest = len(array)
            try:
                check_token_ids(array[None], vocab_size)
            except BadInputError as error:
                raise ConfigError(f"suite.perplexity.{name}, {ref.location}: {error}") from error
        else:
            longest = _longest(ref, needed, tokenizer_file)
        if longest < needed:
            raise ConfigError(
                f"suite.perplexity.{name}, {ref.location}: at most {longest} tokens in one piece, less "
                f"than a window of {conf.sequence_length}: lower suite.sequence_length or give a longer text"
            )


def _local(source: str, path: str, split: Split) -> TextRef:
    file = local_path(PATH_KEYS[split], path)
    if not file.is_file():
        problem = "a directory; give one file" if file.is_dir() else f"no file {file}"
        raise ConfigError(f"{PATH_KEYS[split]}={path}: {problem}")
    try:
        _check_content(source, file, split)
        return TextRef(source=source, location=str(file), fingerprint=content_hash(file))
    except (BadInputError, OSError) as error:
        raise ConfigError(f"{PATH_KEYS[split]}, read as source {source}: {error}") from error


def _folder(path: str) -> TextRef:
    folder = local_path(PATH_KEYS["train"], path)
    if not folder.is_dir():
        raise ConfigError(
            f"{PATH_KEYS['train']}={path}: no folder; source images reads one with questions.json and images/"
        )
    return TextRef(source=IMAGES, location=str(folder), fingerprint=folder_hash(folder))


def _check_images(conf: CalibrationConf, folder: Path) -> None:
    try:
        read_image_questions(folder, CALIBRATED_ON, conf.prompt)
    except BadInputError as error:
        raise ConfigError(f"{PATH_KEYS['train']}: {error}") from error


def _check_content(source: str, file: Path, split: Split) -> None:
    """Raise BadInputError when the file is not what the source says. Of a C4 shard only the beginning is read."""
    if file.stat().st_size > 0 and source in ("c4", "c4_new"):
        if next(read_documents(file), None) is None:
            raise BadInputError(f"{file} holds no documents")
        return
    content = read_content(source, file)
    if isinstance(content, str) and not content.strip():
        raise BadInputError(f"{file} holds nothing but white space")
    if isinstance(content, np.ndarray) and content.ndim != len(TOKEN_AXES[split]):
        raise BadInputError(f"{file} has shape {list(content.shape)}; needed is [{', '.join(TOKEN_AXES[split])}]")


def _commit(hub_file: HubFile, instead: str) -> str:
    """The commit the hub's main branch is at now; without a network, the last one in the hub's cache."""
    try:
        return hf_hub_download(hub_file.repo, hub_file.file, repo_type="dataset", dry_run=True).commit_hash
    except HUB_ERRORS as error:
        raise PrerequisiteError(f"cannot reach the data set {hub_file.repo}: {error}\n  {instead}") from error


def _longest(ref: TextRef, needed: int, tokenizer_file: Path | None) -> int:
    """Tokens of the first of the text's pieces that has `needed`, or else of the longest one.

    A tokenizer of transformers may set one special token in front that tokenizer.json does not know; it is counted.
    """
    tokenizer = open_tokenizer(tokenizer_file) if tokenizer_file is not None else None
    longest = 0
    try:
        for piece in _pieces(ref):
            for text in (piece[: needed * CHARACTERS_PER_TOKEN], piece):
                longest = max(longest, 1 + (len(tokenizer.encode(text).ids) if tokenizer else len(text.encode())))
                if longest >= needed:
                    return longest
    except BadInputError as error:
        raise ConfigError(str(error)) from error
    return longest


def open_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json, without truncation or padding. Raises ConfigError when it is none."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        if type(error) is not Exception:  # which is what the Rust library raises
            raise
        raise ConfigError(f"{file}: not a tokenizer ({error}); save the model's tokenizer there again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _pieces(ref: TextRef) -> Iterable[str]:
    """What windows are cut from: each document, or the one stream."""
    assert ref.location is not None
    file = Path(ref.location)
    if ref.source == "c4":
        return read_documents(file)
    if ref.source == "c4_new":
        return [" ".join(islice(read_documents(file), C4_NEW_NUM_DOCUMENTS))]
    content = read_content(ref.source, file)
    assert isinstance(content, str)
    return [content]
