"""English text that ships with every CPython: the topics of `help()`, and docstrings and comments of its library.

Sources are parsed, never imported, so the text depends only on the files of this Python. It differs between patch
versions of CPython; the text files beside the shipped weights are therefore the reference, this module their recipe.
Changes made to CPython's text: indentation and blank lines normalised, rules and tables of symbols dropped,
non-ASCII paragraphs and repeated paragraphs dropped, documents reordered.
"""

import ast
import hashlib
import inspect
import io
import re
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_BYTES = 200_000
DEVELOPMENT_BYTES = 100_000
CALIBRATION_BYTES = 400_000

TOPICS = Path("pydoc_data", "topics.py")
# Test folders are optional in CPython builds; site-packages and ensurepip's bundle are not CPython's text.
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "_bundled", "__pycache__"})

# Files that grant rights in words of their own; without them CPython's licence covers every line of the text.
OWN_LICENCE = re.compile(r"permission to use|permission is hereby granted|redistribution and use|licensed under the")

# Shorter comments are mostly labels of the code below them.
MIN_COMMENT_LINES = 2

# A paragraph is a repetition when this share of its runs of SHINGLE words was seen before.
SHINGLE = 6
REPEATED_SHARE = 0.3


@dataclass(frozen=True)
class Split:
    """Documents in the order of their content hash; no document and no longer paragraph stands in two parts."""

    held_out: tuple[str, ...]
    development: tuple[str, ...]
    train: tuple[str, ...]


def standard_library() -> Path:
    """The folder of this Python's standard library (the base installation's, also inside a virtual environment)."""
    return Path(sysconfig.get_path("stdlib"))


def documents(stdlib: Path) -> list[str]:
    """One cleaned document per help topic and per source file with docstrings or comments, in order of their names.

    Raises FileNotFoundError when `stdlib` has no help topics, SyntaxError when a source file does not parse.
    """
    topics = stdlib / TOPICS
    if not topics.is_file():
        raise FileNotFoundError(f"{topics}: no help topics; give the standard library folder of a full CPython")
    texts = [*_topics(topics), *(_prose(path) for path in _source_files(stdlib))]
    return [text for text in map(clean, texts) if text]


def _topics(path: Path) -> Iterator[str]:
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            yield from (topics[name] for name in sorted(topics))


def _source_files(stdlib: Path) -> list[Path]:
    relative = sorted(path.relative_to(stdlib) for path in stdlib.rglob("*.py"))
    return [stdlib / path for path in relative if not SKIPPED_FOLDERS.intersection(path.parts)]


def _prose(path: Path) -> str:
    """Docstrings and comments of a file in the order of its lines; empty when the file has a licence of its own."""
    with tokenize.open(path) as file:
        source = file.read()
    if OWN_LICENCE.search(" ".join(source.replace("#", " ").lower().split())):
        return ""
    blocks = sorted([*_docstrings(source), *_comments(source)])
    return "\n\n".join(text for _, text in blocks)


def _docstrings(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.body[0].lineno, docstring


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Runs of comments that stand alone on neighbouring lines, at least MIN_COMMENT_LINES long."""
    run: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        alone = token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
        if alone and run and token.start[0] == run[-1][0] + 1:
            run.append((token.start[0], token.string))
        elif alone or token.type == tokenize.ENDMARKER:
            if len(run) >= MIN_COMMENT_LINES:
                lines = [re.sub(r"^#+ ?", "", comment) for _, comment in run]
                yield run[0][0], textwrap.dedent("\n".join(lines))
            run = [(token.start[0], token.string)]


def clean(text: str) -> str:
    """Paragraphs separated by one blank line; no trailing spaces, no line without a letter or digit, ASCII only."""
    lines = [line.rstrip() for line in inspect.cleandoc(text).expandtabs(4).splitlines()]
    kept = [line for line in lines if not line or any(character.isalnum() for character in line)]
    paragraphs = re.split(r"\n{2,}", "\n".join(kept))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip() and paragraph.isascii())


def split(
    texts: Iterable[str], held_out_bytes: int = HELD_OUT_BYTES, development_bytes: int = DEVELOPMENT_BYTES
) -> Split:
    """Hold out the documents with the smallest sha256, then fill development, then train, dropping repetitions.

    Documents are visited in the order of their content hash, so the order of files does not matter, and a repeated
    paragraph stays where it is met first: held-out text wins over development text, and both over training text.
    """
    ordered = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    budgets = [held_out_bytes, development_bytes]
    part = 0
    seen: set[tuple[str, ...]] = set()
    for text in ordered:
        fresh = "\n\n".join(_novel_paragraphs(text, seen))
        if not fresh:
            continue
        parts[part].append(fresh)
        if part < len(budgets):
            budgets[part] -= len(fresh)
            part += budgets[part] <= 0
    return Split(*(tuple(texts) for texts in parts))


def shingles(paragraph: str) -> set[tuple[str, ...]]:
    """Every run of SHINGLE lower-case words of a paragraph; empty when it is shorter than that."""
    words = re.findall(r"[a-z0-9]+", paragraph.lower())
    return {tuple(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1)}


def _novel_paragraphs(text: str, seen: set[tuple[str, ...]]) -> Iterator[str]:
    """Paragraphs of which less than REPEATED_SHARE was seen; remembers their shingles in `seen`."""
    for paragraph in text.split("\n\n"):
        runs = shingles(paragraph)
        if len(runs & seen) > REPEATED_SHARE * len(runs):
            continue
        seen |= runs
        yield paragraph


def join(texts: Iterable[str]) -> str:
    """One text of many documents, as it is shipped and scored."""
    return "\n\n".join(texts) + "\n"


def calibration(train: Iterable[str], num_bytes: int = CALIBRATION_BYTES) -> tuple[str, ...]:
    """The first training documents, until `num_bytes` are reached."""
    chosen: list[str] = []
    size = 0
    for text in train:
        if size >= num_bytes:
            break
        chosen.append(text)
        size += len(text)
    return tuple(chosen)
