"""Quantize requests over models small enough to be made in a test."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from conf.schema import (
    CalibrationConf,
    FloatScheme,
    GptqRound,
    HadamardRotate,
    KroneckerIncohere,
    LdlqRound,
    MethodConf,
    MseClip,
    NearestRound,
    NoRound,
    NumericsConf,
    RmsClip,
    UniformScheme,
)
from workers.api import ModelRef, QuantizeRequest, TextRef
from workers.checkpoint import CheckpointReader
from workers.datasets import content_hash
from workers.export import stored_layout
from workers.methods.grid import QuantParams
from workers.packing import PACKED, unpack

VOCAB_SIZE = 128
NUM_WINDOWS, WINDOW_TOKENS = 8, 64
METHODS = {
    "none": MethodConf("none", "baseline", round=NoRound()),
    "rtn": MethodConf("rtn", "baseline", round=NearestRound()),
    "gptq": MethodConf("gptq", "compensation", round=GptqRound()),
    "quip": MethodConf("quip", "rotation", incohere=KroneckerIncohere(), clip=RmsClip(), round=LdlqRound()),
    "quarot": MethodConf("quarot", "rotation", rotate=HadamardRotate(), round=NearestRound()),
    "quarot_gptq": MethodConf("quarot_gptq", "combination", rotate=HadamardRotate(), clip=MseClip(), round=GptqRound()),
}


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Words `t0`, `t1`, ... are the tokens 0, 1, ..."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0").save_pretrained(directory)


def write_llama(directory: Path, *, seed: int = 0, shard_size: str = "50GB", **sizes: Any) -> Path:
    """A random LLaMA in float32 with a tokenizer; unless `sizes` says otherwise, three blocks with two heads of 32."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    config = LlamaConfig(**{**given, **sizes})
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size=shard_size)
    write_tokenizer(directory, config.vocab_size)
    return directory


def model_ref(directory: Path) -> ModelRef:
    return ModelRef(directory.name, str(directory), "llama", fingerprint="a content hash", directory=str(directory))


def random_windows(count: int, length: int, vocab_size: int = VOCAB_SIZE) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, vocab_size, (count, length))


def request_for(
    model: Path,
    storage: Path,
    method: str,
    scheme: UniformScheme | None = None,
    *,
    windows: npt.NDArray[np.int64] | None = None,
    key: str = "key",
) -> QuantizeRequest:
    """A request to quantize `model` with `method` (a key of METHODS), by default to 3 bits per row."""
    windows = random_windows(NUM_WINDOWS, WINDOW_TOKENS) if windows is None else windows
    for name in ("checkpoints", "leases"):
        (storage / name).mkdir(parents=True, exist_ok=True)
    tokens = storage / "windows.npy"
    np.save(tokens, windows)
    count, length = windows.shape
    return QuantizeRequest(
        evaluate_key="evaluation",
        quantize_key=key,
        model=model_ref(model),
        method=copy.deepcopy(METHODS[method]),
        scheme=FloatScheme() if method == "none" else scheme or UniformScheme(bits=3),
        calibration=CalibrationConf("tokens", "tokens", str(tokens), count, length),
        calibration_text=TextRef("tokens", str(tokens), content_hash(tokens)),
        seed=0,
        numerics=NumericsConf(dtype="float32", device="cpu"),
        storage=str(storage),
        attempt_directory=str(storage),
    )


def quantized_linears(checkpoint: Path) -> dict[str, tuple[torch.Tensor, QuantParams]]:
    """Codes [out, in] and grid of every packed linear, by its full name."""
    layout = stored_layout(checkpoint)
    assert layout is not None
    reader = CheckpointReader(checkpoint)
    found = {}
    for name in reader.files:
        if name.endswith(f".{PACKED}"):
            linear = name.removesuffix(f".{PACKED}")
            parts = reader.read(reader.names(f"{linear}.weight_"))
            codes, params, _ = unpack({n.removeprefix(f"{linear}."): t for n, t in parts.items()}, layout)
            assert isinstance(params, QuantParams)
            found[linear] = codes, params
    return found


def shard_bytes(checkpoint: Path) -> dict[str, bytes]:
    """Every weight file of a checkpoint as it is on disk."""
    return {path.name: path.read_bytes() for path in sorted(checkpoint.glob("*.safetensors"))}


def edit_config(model: Path, **values: Any) -> None:
    """Change entries of config.json."""
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
