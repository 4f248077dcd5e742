"""A checkpoint larger than the memory that its quantization may take."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from conf.schema import UniformScheme
from tests.workers.tiny_requests import random_windows, request_for, write_tokenizer
from workers import checkpoint as ck
from workers.checkpoint import INDEX, CheckpointReader
from workers.layout import checkpoint_directory, partial_directory

pytestmark = pytest.mark.slow

NUM_BLOCKS, HIDDEN, INTERMEDIATE, VOCAB_SIZE = 24, 1792, 4864, 8192
MEMORY_GIB = 1.5e9 / 2**30
CHILD = "import pickle, sys; from workers.pipeline import quantize; quantize(pickle.load(open(sys.argv[1], 'rb')))"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random LLaMA of 965 million parameters in bfloat16, 1.93 GB, one shard for each block."""
    directory = tmp_path_factory.mktemp("large")
    LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=HIDDEN // 128,
        max_position_embeddings=256,
        dtype="bfloat16",
    ).save_pretrained(directory)
    write_tokenizer(directory, VOCAB_SIZE)
    shapes = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
    shapes |= {"mlp.down_proj": (HIDDEN, INTERMEDIATE)}
    weights = {f"{name}.weight": _random(*shape) for name, shape in shapes.items()}
    weights |= {f"{name}_layernorm.weight": torch.ones(HIDDEN).bfloat16() for name in ("input", "post_attention")}
    files: dict[str, str] = {}
    for index in range(NUM_BLOCKS):  # the same block turned each time: making random numbers is what takes long
        block = {f"model.layers.{index}.{name}": w.roll(index, 0).contiguous() for name, w in weights.items()}
        files |= _write(directory, f"block-{index}.safetensors", block)
    outside = {name: _random(VOCAB_SIZE, HIDDEN) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    files |= _write(directory, "rest.safetensors", outside | {"model.norm.weight": torch.ones(HIDDEN).bfloat16()})
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    yield directory
    shutil.rmtree(directory)  # pytest would keep the last three


def _random(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16).normal_(0, 0.02)


def _write(directory: Path, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    save_file(tensors, directory / name, {"format": "pt"})
    return dict.fromkeys(tensors, name)


def quantized_in_a_process(model: Path, storage: Path, method: str, until: str | None) -> float:
    """Quantize in a process of its own, killed once the unfinished checkpoint has the file `until`.

    Returns the most memory, in GiB, that the process had resident, mapped files included.
    """
    windows = random_windows(4, 64, VOCAB_SIZE)
    request = request_for(model, storage, method, UniformScheme(bits=3, group_size=128), windows=windows)
    (storage / "request").write_bytes(pickle.dumps(request))
    worker = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(storage / "request")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    )
    partial, peak = partial_directory(storage, "key"), 0.0
    while worker.poll() is None:
        peak = max(peak, _peak_gib(worker.pid))
        if until is not None and (partial / until).exists():
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        time.sleep(0.02)
    assert worker.returncode == (0 if until is None else -signal.SIGKILL)
    return peak


def _peak_gib(pid: int) -> float:
    """VmHWM, which the process sets back once at its beginning."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return max((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), default=0) / 2**20


@pytest.mark.timeout(1200)
def test_rounding_two_gigabytes_takes_less_memory_than_they_do(large: Path, tmp_path: Path) -> None:
    assert CheckpointReader(large).num_bytes() > 1.9e9
    peak = quantized_in_a_process(large, tmp_path, "rtn", until=None)
    manifest = ck.read_manifest(checkpoint_directory(tmp_path, "key"))
    assert manifest is not None and len(manifest.layer_reports) == 7 * NUM_BLOCKS
    assert manifest.checkpoint_bytes < 0.3 * 1.93e9
    print(f"rtn: peak {peak:.2f} GiB, by its own account {manifest.peak_memory_gib:.2f}; {manifest.seconds:.0f} s")
    assert manifest.peak_memory_gib <= peak + 0.01 and peak < MEMORY_GIB


@pytest.mark.timeout(1200)
def test_gptq_on_two_gigabytes_takes_less_memory_than_they_do(large: Path, tmp_path: Path) -> None:
    """Two blocks of 24: every further one takes the same."""
    peak = quantized_in_a_process(large, tmp_path, "gptq", until="block-00001.json")
    print(f"gptq: peak {peak:.2f} GiB")
    assert peak < MEMORY_GIB
