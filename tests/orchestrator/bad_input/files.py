"""Files that cannot be used: model directories, texts, token streams, folders of tasks."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from tokenizers import Tokenizer, models

from tests.orchestrator.bad_input.case import Case, bad
from tests.orchestrator.hand_made import write_checkpoint, write_text

Prepare = Callable[[Path], object]


# --- model directories -----------------------------------------------------------------------------------------------


def model(change: Prepare | None = None, **sizes: Any) -> Prepare:
    """A checkpoint `m` with some sizes changed (null removes one), then changed further by hand."""

    def prepare(directory: Path) -> None:
        path = write_checkpoint(directory / "m", **sizes)
        if change is not None:
            change(path)

    return prepare


def holds(name: str, content: bytes | str | None) -> Prepare:
    """A file's content; null removes it."""

    def prepare(directory: Path) -> None:
        path = directory / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def links(name: str, target: str) -> Prepare:
    def prepare(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)

    return prepare


def becomes_a_directory(name: str) -> Prepare:
    def prepare(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        (directory / name).mkdir()

    return prepare


def only_weights(name: str) -> Prepare:
    def prepare(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / name)

    return prepare


def bad_model(*said: str, change: Prepare | None = None, **sizes: Any) -> Case:
    return bad("model.repo=./m", *said, prepare=model(change, **sizes))


def config(*said: str, content: bytes | str | None) -> Case:
    return bad_model(*said, change=holds("config.json", content))


def tokenizer(*said: str, content: bytes | str | None) -> Case:
    return bad_model(*said, change=holds("tokenizer.json", content))


PLACES = [
    bad("model.repo=missing", "model.repo=missing: no such directory", "hub id of the form organisation/name"),
    bad("model.repo=/no/such", "model.repo=/no/such: no such directory"),
    bad("model.repo=", "model.repo is empty"),
    bad("model.repo=./empty", "empty: no config.json", prepare=becomes_a_directory("empty")),
    bad("model.repo=text.txt", "model.repo=text.txt: a file; give the model's directory"),
    bad("model.repo=./dangling", "model.repo=./dangling: no such directory", prepare=links("dangling", "nowhere")),
    bad("model.repo=./loop", "model.repo=./loop: no such directory", prepare=links("loop", "loop")),
    bad(f"model.repo=/{'x' * 300}", "File name too long"),
    bad("model.repo=zoo:mini_lama", "model.repo=zoo:mini_lama", "nearest names: mini_llama"),
    bad("model.repo=zoo:mini_llama/calibration.txt", "a file; give the model's directory"),
    bad("model.repo=s3://bucket/model", "model.repo=s3://bucket/model", "not a URL"),
    bad("model.repo=a/b/c", "model.repo=a/b/c: no such directory"),
    bad("model.tokenizer=./missing", "model.tokenizer=./missing: no such directory"),
    bad("model.tokenizer=./empty", "empty: no tokenizer.json or tokenizer.model", prepare=becomes_a_directory("empty")),
    bad("model.shape.hidden_size=64", "`model.shape.hidden_size=64`: this model has no shape to change"),
]
CONFIGS = [
    config("/m: no config.json; a Hugging Face model directory is needed", content=None),
    config("m/config.json: not JSON", "line 1 column 1", content=""),
    config("m/config.json: not JSON", "line 1 column 6", content='{"a":'),
    config("m/config.json: not a JSON object", content="[]"),
    config("m/config.json: not JSON", "byte 0xff", content=b"\xff\xfe{}"),
    config("m/config.json: not JSON", "BOM", content=b"\xef\xbb\xbf{}"),
    bad_model("m/config.json: Is a directory", change=becomes_a_directory("config.json")),
    bad_model("m/config.json: Too many levels of symbolic links", change=links("config.json", "config.json")),
    bad_model("m/config.json: model_type=null is none of llama", "model.architecture=<name>", model_type=None),
    bad_model('m/config.json: model_type="gpt2" is none of llama, mixtral', model_type="gpt2"),
    bad_model('m/config.json: model_type=["llama"] is none of', model_type=["llama"]),
    bad_model("m/config.json: no `hidden_size`", hidden_size=None),
    bad_model("m/config.json: no `vocab_size`", vocab_size=None),
    bad_model("m/config.json: hidden_size=-64 is not a whole number of at least 1", hidden_size=-64),
    bad_model("m/config.json: num_hidden_layers=0 is not a whole number", num_hidden_layers=0),
    bad_model("m/config.json: intermediate_size='96' is not a whole number", intermediate_size="96"),
    bad_model("m/config.json: vocab_size=128.5 is not a whole number", vocab_size=128.5),
    bad_model("m/config.json: head_dim=True is not a whole number", head_dim=True),
    bad_model("m/config.json: num_attention_heads=[2] is not a whole number", num_attention_heads=[2]),
    bad_model("num_attention_heads=3 does not divide hidden_size=64", num_attention_heads=3, head_dim=None),
    bad_model("num_key_value_heads=3 does not divide num_attention_heads=2", num_key_value_heads=3),
    bad_model('m/config.json: dtype "int8" is none of float32', dtype="int8"),
    bad_model("tie_word_embeddings='yes' is neither true nor false", tie_word_embeddings="yes"),
    bad_model("already quantized", "quant_method gptq", "16-bit", quantization_config={"quant_method": "gptq"}),
    bad_model("already quantized", "quant_method awq", quantization_config={"quant_method": "awq"}),
]
TOKENIZERS = [
    tokenizer("/m: no tokenizer.json or tokenizer.model", "model.tokenizer=", content=None),
    tokenizer("m/tokenizer.json: not a tokenizer", "save the model's tokenizer there again", content=""),
    tokenizer("m/tokenizer.json: not a tokenizer", content="{}"),
    tokenizer("m/tokenizer.json: not a tokenizer", content='{"version": "1.0"'),
    tokenizer("m/tokenizer.json: not a tokenizer", content=b"\xff\x00"),
    bad_model("/m: no tokenizer.json or tokenizer.model", change=becomes_a_directory("tokenizer.json")),
    tokenizer(
        "m/tokenizer.json: its vocabulary goes up to token 128, the model's embedding has 128 rows",
        "model.tokenizer=<hub id or directory>",
        content=Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 128}, unk_token="[UNK]")).to_str(),
    ),
]
WEIGHTS = [
    bad_model("/m: no .safetensors file", change=holds("model.safetensors", None)),
    bad_model("/m: only pickled weights (.bin)", "Convert them once", change=only_weights("pytorch_model.bin")),
    bad_model("model.gguf is quantized already", "16-bit checkpoint", change=only_weights("model.gguf")),
    bad_model("/m: no .safetensors file", change=becomes_a_directory("model.safetensors")),
    bad_model("/m: no .safetensors file", change=links("model.safetensors", "nowhere")),
]


# --- texts -----------------------------------------------------------------------------------------------------------


def bad_text(content: bytes | str, *said: str, before: str = "") -> list[Case]:
    """Both as calibration text and as suite text. before: other overrides of the calibration text."""
    prepare = holds("bad", content)
    calibration = bad(f"{before}calibration.path=bad", "/bad", *said, prepare=prepare)
    return [calibration] if before else [calibration, bad("suite.path=bad", "/bad", *said, prepare=prepare)]


def _parquet(columns: dict[str, Any]) -> Prepare:
    return lambda directory: pyarrow.parquet.write_table(pyarrow.table(columns), directory / "bad")


TEXT_PLACES = [
    bad("calibration.path=missing.txt", "calibration.path=missing.txt: no file"),
    bad("suite.path=missing.txt", "suite.path (or a text's own path)=missing.txt: no file"),
    bad("calibration.path=tiny", "calibration.path=tiny: a directory; give one file"),
    bad("calibration.path=", "calibration.path is empty"),
    bad("calibration.path=dangling", "dangling: no file", prepare=links("dangling", "nowhere")),
    bad("suite.path=loop", "loop: no file", prepare=links("loop", "loop")),
    bad("suite.path=https://host/text", "suite.path (or a text's own path)=https://host/text", "not a URL"),
    bad(f"suite.path={'x' * 300}", "File name too long"),
    bad("calibration.path=zoo:nope", "calibration.path=zoo:nope", "nearest names"),
    bad("calibration=images calibration.path=missing", "calibration.path=missing: no folder; source images reads one"),
    bad(
        "calibration=mini_images calibration.path=zoo:mini_images/calibration",
        "calibration.source=images: llama reads and sees no images",
    ),
]
TEXTS = [
    *bad_text("", "is empty"),
    *bad_text("  \n\t\n" * 50, "holds nothing but white space"),
    *bad_text(bytes(range(256)) * 20, "is not UTF-8 text: byte 0x80 at offset 128"),
    *bad_text("a b " * 50 + "\0", "is not text: NUL byte at offset 200"),
    *bad_text("café ".encode("latin-1") * 100, "is not UTF-8 text: byte 0xe9 at offset 3"),
    *bad_text("a b ".encode("utf-16") * 100, "is not UTF-8 text: byte 0xff at offset 0"),
    *bad_text("a", "at most 2 tokens", "longer text"),
    bad(
        "calibration.path=short.txt",
        "random windows of 32 need at least 33",
        prepare=lambda d: write_text(d / "short.txt", 31),
    ),
    bad(
        "suite.path=short.txt",
        "less than a window of 32",
        "lower suite.sequence_length",
        prepare=lambda d: write_text(d / "short.txt", 7),
    ),
]
C4 = "calibration=c4 "
DOCUMENTS = [
    *bad_text('{"text": "a"}\n{"txt": "b"}\n', "line 2 has no string under `text`", before=C4),
    *bad_text('{"text": "a"}\nnope\n', "line 2 is not JSON", before=C4),
    *bad_text("[1]\n", "line 1 has no string under `text`", before=C4),
    *bad_text('{"text": 3}\n', "line 1 has no string under `text`", before=C4),
    *bad_text("\n\n", "line 1 is not JSON", before=C4),
    *bad_text('{"text": "a b"}\n' * 9, "at most 3 tokens in one piece", before=C4),
    *bad_text(gzip.compress(b'{"text": "a"}\n' * 999)[:60], "damaged gzip after line", before=C4),
    bad("calibration=wikitext2 calibration.path=bad", "column `text`", prepare=_parquet({"txt": ["a"]})),
    bad("calibration=wikitext2 calibration.path=bad", "row 1 of column `text` is not", prepare=_parquet({"text": [3]})),
    *bad_text(b"PAR1" + bytes(50) + b"PAR1", "is not a readable parquet file", before="calibration=wikitext2 "),
]


# --- token streams ---------------------------------------------------------------------------------------------------


def tokens(array: Any, *said: str) -> Case:
    """Calibration tokens; needed are [2, 32]."""
    return bad(
        "calibration=tokens calibration.path=t.npy", "/t.npy", *said, prepare=lambda d: np.save(d / "t.npy", array)
    )


def stream(array: Any, *said: str) -> Case:
    return bad("suite=tokens suite.path=t.npy", "/t.npy", *said, prepare=lambda d: np.save(d / "t.npy", array))


def _truncated(directory: Path) -> None:
    np.save(directory / "t.npy", np.zeros((2, 32), dtype=np.int64))
    (directory / "t.npy").write_bytes((directory / "t.npy").read_bytes()[:300])


TOKENS = [
    tokens(np.zeros((2, 32)), "holds float64, not integers"),
    tokens(np.zeros((2, 32), dtype=bool), "holds bool, not integers"),
    tokens(np.array([{}], dtype=object), "is not a whole .npy file of integers"),
    tokens(np.zeros((1, 32), dtype=int), "shape [1, 32]; needed are [2 or more, 32]", "calibration.num_sequences"),
    tokens(np.zeros((2, 33), dtype=int), "shape [2, 33]; needed are [2 or more, 32]"),
    tokens(np.zeros(64, dtype=int), "has shape [64]; needed is [num_sequences, sequence_length]"),
    tokens(np.full((2, 32), 128), "token id 128 in window 0, position 0", "vocabulary has 128 entries"),
    tokens(np.full((2, 32), -1), "token id -1 in window 0"),
    bad("calibration=tokens calibration.path=t.npy", "is not a whole .npy file", prepare=_truncated),
    bad("calibration=tokens calibration.path=text.txt", "text.txt is not a .npy file of integers"),
    bad(
        "calibration=tokens calibration.path=z",
        "is an archive",
        prepare=lambda d: np.savez((d / "z").open("wb"), a=[1]),
    ),
    stream(np.zeros((4, 32), dtype=int), "has shape [4, 32]; needed is [num_tokens]"),
    stream(np.zeros(31, dtype=int), "at most 31 tokens", "less than a window of 32"),
    stream(np.zeros(0, dtype=int), "at most 0 tokens"),
    stream(np.full(64, 5000), "suite.perplexity.tokens", "token id 5000"),
]


def _one_image(directory: Path) -> None:
    (directory / "questions.json").write_text('[["is it a cat?", "yes", "cat"]]')
    (directory / "images").mkdir()
    Image.new("RGB", (2, 2)).save(directory / "images" / "cat.png")


def _no_image(directory: Path) -> None:
    _one_image(directory)
    (directory / "images" / "cat.png").write_bytes(b"<html>404</html>")


def items(line: str, *said: str) -> Case:
    return bad("suite=task_file suite.path=items.jsonl", *said, prepare=holds("items.jsonl", line))


TASKS = [
    bad("suite.task_path=nowhere", "suite.task_path=nowhere: no such directory"),
    bad("suite.task_path=text.txt", "suite.task_path=text.txt: a file; give the directory it lies in"),
    bad("suite.task_path=zoo:nope", "suite.task_path=zoo:nope", "nearest names"),
    bad("suite=task_file suite.path=null", "suite.task_files.items", "no file; give suite.path=<file of JSON lines"),
    bad("suite=task_file suite.path=nowhere.jsonl", "suite.task_files.items", "nowhere.jsonl: No such file"),
    bad("suite=task_file suite.path=text.txt", "suite.task_files.items", "text.txt, line 1: not JSON"),
    bad("suite=task_files suite.path=.", "suite.task_files.arc_challenge", "arc_challenge.jsonl: No such file"),
    items('{"query": "a", "choices": ["b", "c"]}', "items.jsonl, line 1: no `gold`"),
    items('{"query": "a", "choices": ["b", "c"], "gold": 2}', "line 1: gold 2 is none of the 2 choices"),
    bad(
        "suite=task_file suite.path=items.jsonl suite.task_files.items.prompt='{{qery}}'",
        "line 1: no `qery`",
        prepare=holds("items.jsonl", '{"query": "a", "choices": ["b", "c"], "gold": 1}'),
    ),
    bad("suite=image_folder suite.path=.", "suite.task_files.image_folder", "no questions.json"),
    bad("suite=image_questions suite.path=.", "suite.task_files.scienceqa", "scienceqa: no questions.json"),
    bad(
        "suite=image_folder suite.path=. suite.task_files.image_folder.score=exact",
        "score=exact: unknown; valid: exact_match, option_letter",
    ),
    bad(
        "suite=image_folder suite.path=. suite.task_files.image_folder.score=yes_no",
        "questions.json, entry 1: no image cat in",
        prepare=holds("questions.json", '[["is it a cat?", "yes", "cat"]]'),
    ),
    bad("suite=image_folder suite.path=.", "images/cat.png: not an image", "copy it again", prepare=_no_image),
    bad(
        "suite=image_folder suite.path=. model.architecture=llava",
        "no processor_config.json or preprocessor_config.json",
        "save_pretrained(<directory>)",
        prepare=_one_image,
    ),
    bad("suite=image_folder suite.path=.", "some show images, and llama sees none", prepare=_one_image),
    bad("suite=task_file suite.task_file.items.path=x", "'task_file'", "did you mean task_files"),
]

FILES = {
    "models: places": PLACES,
    "models: config.json": CONFIGS,
    "models: tokenizers": TOKENIZERS,
    "models: weights": WEIGHTS,
    "texts: places": TEXT_PLACES,
    "texts: contents": TEXTS,
    "texts: documents": DOCUMENTS,
    "tokens": TOKENS,
    "tasks": TASKS,
}
