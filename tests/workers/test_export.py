"""Packed linears: there and back, as other tools read them, and multiplied out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.schema import UniformScheme
from tests.workers.tiny_requests import METHODS, random_windows, request_for, write_llama
from workers import export, packing
from workers.checkpoint import CheckpointReader
from workers.layout import checkpoint_directory
from workers.methods.grid import QuantParams
from workers.methods.linear import Outcome, QuantizedLinear, quantize_linear, restored
from workers.methods.statistics import Statistics
from workers.pipeline import quantize

SCHEMES = [
    UniformScheme(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype)
    for bits in (2, 3, 4, 8)
    for group_size, symmetric, scale_dtype in ((None, False, "float16"), (4, False, "float32"), (4, True, "float16"))
]


@st.composite
def linears(draw: st.DrawFn) -> tuple[torch.Tensor, QuantParams, UniformScheme]:
    """Codes and a grid of any size; in_features rarely fills the last word."""
    bits = draw(st.sampled_from([2, 3, 4, 5, 6, 7, 8]))
    out_features, num_groups = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    group = draw(st.integers(1, 23))
    per_row = num_groups == 1 and draw(st.booleans())
    symmetric = draw(st.booleans())
    scale_dtype = draw(st.sampled_from(["float16", "float32"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    codes = torch.randint(0, 2**bits, (out_features, num_groups * group), generator=generator).to(torch.uint8)
    scale = (torch.rand(out_features, num_groups, generator=generator) + 0.01).to(getattr(torch, scale_dtype)).float()
    zero_point = torch.randint(0, 2**bits, scale.shape, generator=generator, dtype=torch.int32).float()
    if symmetric:
        zero_point.fill_(2 ** (bits - 1))
    size = None if per_row else group
    scheme = UniformScheme(bits=bits, group_size=size, symmetric=symmetric, scale_dtype=scale_dtype)
    return codes, QuantParams(scale, zero_point, bits, size), scheme


def in_own_basis(codes: torch.Tensor, params: QuantParams) -> QuantizedLinear:
    return QuantizedLinear(codes, params, None, Outcome("", 0.0, None, 0, None, None, None), params.values(codes))


@given(linears())
def test_unpacking_is_the_inverse_of_packing(linear: tuple[torch.Tensor, QuantParams, UniformScheme]) -> None:
    codes, params, scheme = linear
    layout = packing.Layout(scheme)
    back, grid, basis = packing.unpack(packing.pack(in_own_basis(codes, params), layout), layout)
    assert basis is None and isinstance(grid, QuantParams)
    assert back.dtype == torch.uint8 and torch.equal(back, codes)
    assert torch.equal(grid.scale, params.scale) and torch.equal(grid.zero_point, params.zero_point)
    assert (grid.bits, grid.group_size) == (scheme.bits, scheme.group_size)


@pytest.mark.parametrize(("bits", "words"), [(2, 4), (3, 5), (4, 7), (8, 13)])
def test_a_word_holds_as_many_whole_codes_as_fit(bits: int, words: int) -> None:
    """50 columns: 16, 10, 8 and 4 codes in each int32."""
    codes = torch.zeros(6, 50, dtype=torch.uint8)
    params = QuantParams(torch.ones(6, 1), torch.zeros(6, 1), bits, None)
    packed = packing.pack(in_own_basis(codes, params), packing.Layout(UniformScheme(bits=bits)))
    assert (packed["weight_packed"].dtype, list(packed["weight_packed"].shape)) == (torch.int32, [6, words])
    assert packed["weight_scale"].dtype == torch.float16
    assert packed["weight_shape"].tolist() == [6, 50]


@pytest.mark.parametrize("group_size", [None, 8])
def test_a_linear_in_a_basis_of_its_own_comes_back_with_it(group_size: int | None) -> None:
    method, scheme = METHODS["quip"], UniformScheme(bits=2, group_size=group_size)
    weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    linear = quantize_linear(weight, Statistics(torch.eye(40)), method, scheme, seed=7)
    layout = packing.layout_of(method, scheme)
    tensors = packing.pack(linear, layout)
    assert torch.equal(restored(*packing.unpack(tensors, layout)), linear.dense)
    assert tensors["weight_scale"].numel() == (1 if group_size is None else 12 * 5)
    codes = tensors["weight_packed"].numel() * 32
    stored = sum(t.numel() * t.element_size() * 8 for name, t in tensors.items() if name != "weight_shape")
    padding = codes - weight.numel() * scheme.bits  # 40 columns do not fill the last word of a row
    assert stored - padding == round(linear.outcome.bits_per_weight * weight.numel())


# --- whole checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose 100 columns fill no word of 3-bit codes, with biases."""
    directory = tmp_path_factory.mktemp("ragged") / "model"
    return write_llama(directory, num_hidden_layers=2, intermediate_size=100, attention_bias=True)


@torch.no_grad()
def logits(directory: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    result: torch.Tensor = model(torch.from_numpy(random_windows(2, 50))).logits
    return result


def packed_checkpoint(model: Path, storage: Path, scheme: UniformScheme, method: str = "rtn") -> Path:
    quantize(request_for(model, storage, method, scheme))
    return checkpoint_directory(storage, "key")


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"w{s.bits} g{s.group_size} {s.symmetric} {s.scale_dtype}")
def test_transformers_reads_a_packed_checkpoint_as_we_multiply_it_out(
    scheme: UniformScheme, ragged: Path, tmp_path: Path
) -> None:
    """Exactly: on both sides a weight is one float32 product of a small integer and the stored scale."""
    packed = packed_checkpoint(ragged, tmp_path, scheme)
    export.write_dense(packed, tmp_path / "dense", "float32")
    by_transformers = logits(packed)
    assert torch.equal(by_transformers, logits(tmp_path / "dense"))
    assert (by_transformers - logits(ragged)).abs().max() > 0  # it is not the unquantized model


def test_a_dense_checkpoint_holds_the_weights_that_the_codes_stand_for(ragged: Path, tmp_path: Path) -> None:
    scheme = UniformScheme(bits=3, group_size=4)
    packed = packed_checkpoint(ragged, tmp_path, scheme)
    export.write_dense(packed, tmp_path / "dense", "bfloat16")
    dense, source = CheckpointReader(tmp_path / "dense"), CheckpointReader(ragged)
    assert set(dense.files) == set(source.files)
    tensors, stored = dense.read(dense.files), load_file(packed / "block-00001.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.down_proj"
    parts = {part: stored[f"{name}.{part}"] for part in ("weight_packed", "weight_scale", "weight_shape")}
    parts["weight_zero_point"] = stored[f"{name}.weight_zero_point"]
    assert torch.equal(tensors[f"{name}.weight"], restored(*packing.unpack(parts, packing.Layout(scheme))).bfloat16())
    bias = "model.layers.1.self_attn.q_proj.bias"
    assert torch.equal(tensors[bias], source.read([bias])[bias].bfloat16())


def test_a_packed_checkpoint_says_what_it_is_and_a_dense_one_is_ordinary(ragged: Path, tmp_path: Path) -> None:
    scheme = UniformScheme(bits=4, group_size=4, symmetric=True)
    packed = packed_checkpoint(ragged, tmp_path, scheme)
    assert export.stored_layout(packed) == packing.Layout(scheme)
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["ignore"] == ["lm_head"]
    export.write_dense(packed, tmp_path / "dense", "float32")
    assert export.stored_layout(tmp_path / "dense") is None
    assert json.loads((tmp_path / "dense" / "config.json").read_text()) == json.loads(
        (ragged / "config.json").read_text()
    )


def test_a_checkpoint_in_rotated_bases_names_its_own_format_and_is_multiplied_out(ragged: Path, tmp_path: Path) -> None:
    request = request_for(ragged, tmp_path / "storage", "quip", UniformScheme(bits=3))
    assert quantize(request) is not None
    packed = checkpoint_directory(tmp_path / "storage", request.quantize_key)
    layout = export.stored_layout(packed)
    assert layout == packing.layout_of(request.method, UniformScheme(bits=3))
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["quant_method"] == "ptq-bench"
    export.write_dense(packed, tmp_path / "dense", "float32")
    difference = (logits(tmp_path / "dense") - logits(ragged)).abs().mean()
    assert 0 < difference < logits(ragged).abs().mean()


def test_the_tokenizer_travels_with_the_weights(ragged: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(ragged, tmp_path / "source"))
    for name in ("merges.txt", "added_tokens.json", "chat_template.jinja"):
        (source / name).write_text("{}")
    packed = packed_checkpoint(source, tmp_path, UniformScheme(bits=4))
    assert AutoTokenizer.from_pretrained(packed)("t3 t9")["input_ids"] == [3, 9]
    for name in ("merges.txt", "added_tokens.json", "chat_template.jinja", "generation_config.json"):
        assert (packed / name).read_bytes() == (source / name).read_bytes()
