"""Other tools on the same model, calibration and number of threads. None is a dependency of ours.

Each function imports and loads first, so that its seconds are those of quantizing alone. Model in float32, 128 windows
as they are, embeddings and head untouched.
"""

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP_SIZE = 64

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own default is one on two cores, and it refuses that


@dataclass(frozen=True)
class Tool:
    """module: what is installed with it. quantize: directory, windows int64 [n, L], bits -> CPU seconds, the model."""

    name: str
    module: str
    quantize: Callable[[Path, Any, int], tuple[float, nn.Module]]


def load(directory: Path) -> Any:
    """A model in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _llm_compressor(directory: Path, windows: Any, bits: int, *, awq: bool) -> tuple[float, nn.Module]:
    oneshot = _import("llmcompressor.oneshot")
    gptq_modifier = _import("llmcompressor.modifiers.gptq.GPTQModifier")
    awq_modifier = _import("llmcompressor.modifiers.transform.awq.AWQModifier")
    nearest_modifier = _import("llmcompressor.modifiers.quantization.QuantizationModifier")
    weights = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP_SIZE}
    grids: dict[str, Any] = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    grids["ignore"] = ["lm_head"]
    recipe = [awq_modifier(offload_device=None), nearest_modifier(**grids)] if awq else [gptq_modifier(**grids)]
    model = load(directory)
    dataset = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": (windows * 0 + 1).tolist()})
    began = time.process_time()
    with patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor):  # its AWQ pins, which needs an accelerator
        oneshot(
            model=model,
            dataset=dataset,
            recipe=recipe,
            max_seq_length=windows.shape[1],
            num_calibration_samples=len(windows),
            shuffle_calibration_samples=False,
        )
    return time.process_time() - began, model


def _gptqmodel(directory: Path, windows: Any, bits: int) -> tuple[float, nn.Module]:
    config = _import("gptqmodel.QuantizeConfig")(bits=bits, group_size=GROUP_SIZE, sym=True, desc_act=True)
    model = _import("gptqmodel.GPTQModel").load(str(directory), config, device="cpu", dtype=torch.float32)
    samples = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows.tolist()]
    began = time.process_time()
    model.quantize(samples, batch_size=8)
    return time.process_time() - began, model.model


def _auto_round(directory: Path, windows: Any, bits: int) -> tuple[float, nn.Module]:
    model, tokenizer = load(directory), AutoTokenizer.from_pretrained(directory)
    rows: Any = [{"input_ids": row} for row in torch.from_numpy(windows)]
    batches: Any = torch.utils.data.DataLoader(rows, batch_size=8)
    rounding = _import("auto_round.AutoRound")(
        model,
        tokenizer,
        bits=bits,
        group_size=GROUP_SIZE,
        sym=False,
        dataset=batches,
        nsamples=len(windows),
        seqlen=windows.shape[1],
        amp=False,
        device_map="cpu",
    )
    began = time.process_time()
    quantized, _ = rounding.quantize()
    return time.process_time() - began, quantized


def _hqq(directory: Path, windows: Any, bits: int) -> tuple[float, nn.Module]:
    model, hqq_model = load(directory), _import("hqq.models.hf.base.AutoHQQHFModel")
    config = _import("hqq.core.quantize.BaseQuantizeConfig")(nbits=bits, group_size=GROUP_SIZE, axis=1)
    began = time.process_time()
    hqq_model.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
    return time.process_time() - began, model


TOOLS = (
    Tool("llm-compressor GPTQ g64", "llmcompressor", lambda d, w, b: _llm_compressor(d, w, b, awq=False)),
    Tool("llm-compressor AWQ g64", "llmcompressor", lambda d, w, b: _llm_compressor(d, w, b, awq=True)),
    Tool("GPTQModel GPTQ g64, symmetric, desc_act", "gptqmodel", _gptqmodel),
    Tool("auto-round g64, 200 iterations", "auto_round", _auto_round),
    Tool("hqq g64", "hqq", _hqq),
)
