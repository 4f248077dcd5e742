"""A checkpoint directory without torch, texts of counted tokens, and cells whose every field is given here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from conf.schema import (
    CalibrationConf,
    CellConf,
    GptqRound,
    LaneConf,
    MethodConf,
    ModelConf,
    NumericsConf,
    ShapeConf,
    SuiteConf,
    TextConf,
    UniformScheme,
)
from orchestrator import cell as identity
from orchestrator.cell import Cell, CellStatus, Engine
from workers.api import ModelRef, TextRef
from workers.canonical import key_of

SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "dtype": "float32",
}
EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


def write_checkpoint(directory: Path, **changes: Any) -> Path:
    """A LLaMA directory: its config.json with `changes` (null removes a key), a tokenizer of words, no tensors."""
    directory.mkdir(parents=True)
    config = {key: value for key, value in (SHAPE | changes).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    return directory


def write_text(path: Path, num_tokens: int) -> Path:
    """A text of so many words, each of them one token."""
    path.write_text(" ".join("ab"[i % 2] for i in range(num_tokens)))
    return path


MODEL = ModelRef("tiny", "/models/tiny", "llama", "sha256:0123", directory="/models/tiny")
TEXT = TextRef("text", "/texts/calibration.txt", "sha256:4567")
TEXTS = {"held_out": TextRef("text", "/texts/held_out.txt", "sha256:89ab")}
ENGINE = Engine("transformers", "5.19.0", "asked for", "float32", "dense")


def make_config() -> CellConf:
    """A cell's configuration with every node given."""
    shape = {key: value for key, value in SHAPE.items() if key not in ("model_type", "dtype")}
    return CellConf(
        model=ModelConf(name="tiny", repo="/models/tiny", architecture="llama", shape=ShapeConf(**shape)),  # type: ignore[arg-type]
        method=MethodConf(name="gptq", category="compensation", round=GptqRound()),
        scheme=UniformScheme(bits=3, group_size=32),
        calibration=CalibrationConf(name="text", source="text", path="/texts/calibration.txt", sequence_length=32),
        suite=SuiteConf(
            name="text",
            sequence_length=32,
            perplexity={"held_out": TextConf("text", "/texts/held_out.txt")},
            tasks=["piqa"],
        ),
        lane=LaneConf("unified"),
        numerics=NumericsConf("float32", "cpu"),
        engine="transformers",
        seed=0,
    )


def make_cell(config: CellConf | None = None, *, support: CellStatus | None = None, label: str = "") -> Cell:
    """A resolved cell of `config`."""
    config = config or make_config()
    assert config.model.shape is not None
    quantize = identity.quantize_payload(config, MODEL, TEXT)
    quantize_key = key_of(quantize)
    payload = identity.evaluate_payload(quantize_key, config.suite, TEXTS, ENGINE)
    return Cell(
        config=config,
        model=MODEL,
        shape=config.model.shape,
        calibration_text=TEXT,
        texts=TEXTS,
        engine=ENGINE,
        quantize_key=quantize_key,
        evaluate_key=key_of(payload),
        payload=payload | {"quantize": quantize},
        label=label or identity.label(config, MODEL, {}),
        support=support,
        support_reason="" if support is None else "it cannot",
    )


def with_bits(bits: int) -> CellConf:
    """The same cell at another number of bits."""
    return replace(make_config(), scheme=UniformScheme(bits=bits, group_size=32))
