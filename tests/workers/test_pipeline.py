"""The block loop against known answers: what is quantized, with what statistics, and what stays as it was."""

import errno
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import workers.block
from conf.schema import UniformScheme
from tests.workers.tiny_requests import (
    NUM_WINDOWS,
    WINDOW_TOKENS,
    edit_config,
    quantized_linears,
    random_windows,
    request_for,
    shard_bytes,
    write_llama,
)
from workers import checkpoint as ck
from workers import partial
from workers.api import Manifest
from workers.arch import ARCHITECTURES
from workers.checkpoint import CheckpointReader
from workers.errors import BadInputError, NoOpError, NumericalError
from workers.export import write_dense
from workers.layout import MANIFEST, checkpoint_directory, partial_directory
from workers.methods.grid import dequantize
from workers.methods.statistics import Statistics
from workers.pipeline import quantize

LINEARS = ARCHITECTURES["llama"].linears
SCHEMES = {
    "rows": UniformScheme(bits=2),
    "groups": UniformScheme(bits=3, group_size=32),
    "symmetric": UniformScheme(bits=4, group_size=32, symmetric=True, scale_dtype="float32"),
}
UNIT_ROUNDOFF = 2.0**-24  # of float32


def made(model: Path, storage: Path, method: str, scheme: UniformScheme | None = None, **more: Any) -> Manifest:
    manifest = quantize(request_for(model, storage, method, scheme, **more))
    assert manifest is not None
    return manifest


def key_directory(storage: Path) -> Path:
    return checkpoint_directory(storage, "key")


@torch.no_grad()
def log_probabilities(model: Path, tokens: list[list[int]], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    prompts = torch.tensor(tokens)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    rows = torch.log_softmax(loaded(input_ids=prompts).logits[:, :-1], dim=-1)
    return rows.gather(2, prompts[:, 1:, None]).squeeze(2)


# --- the canary is the model -----------------------------------------------------------------------------------------


def test_a_baseline_s_canary_is_the_whole_model(tiny_llama: Path, tmp_path: Path) -> None:
    manifest = made(tiny_llama, tmp_path, "none")
    exact = log_probabilities(tiny_llama, manifest.canary.tokens, torch.float64)
    rounding = (log_probabilities(tiny_llama, manifest.canary.tokens) - exact).abs().max()
    assert (torch.tensor(manifest.canary.reference) - exact).abs().max() < 2 * rounding + 1e-6
    assert manifest.canary.quantized == manifest.canary.reference
    assert (manifest.weight_format, manifest.bits_per_weight, manifest.files) == ("source", 16.0, {})
    assert [p.name for p in key_directory(tmp_path).iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_quantized_canary_is_the_dense_export(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    canary = made(tiny_llama, tmp_path, method).canary
    write_dense(key_directory(tmp_path), tmp_path / "dense", "float32")
    exact = log_probabilities(tmp_path / "dense", canary.tokens, torch.float64)
    rounding = (log_probabilities(tmp_path / "dense", canary.tokens) - exact).abs().max()
    assert (torch.tensor(canary.quantized) - exact).abs().max() < 2 * rounding + 1e-6
    original = log_probabilities(tiny_llama, canary.tokens, torch.float64)
    assert (torch.tensor(canary.reference) - original).abs().max() < 2 * rounding + 1e-6


def test_the_canary_is_eight_beginnings_of_the_calibration_windows(tiny_llama: Path, tmp_path: Path) -> None:
    windows = random_windows(17, 80)
    canary = made(tiny_llama, tmp_path, "rtn", windows=windows).canary
    assert canary.tokens == [windows[i * 17 // 8, :64].tolist() for i in range(8)]


# --- what is quantized, and what is not ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_row_or_group_has_no_more_values_than_its_bits_allow(
    name: str, method: str, tiny_llama: Path, tmp_path: Path
) -> None:
    scheme = SCHEMES[name]
    made(tiny_llama, tmp_path, method, scheme)
    found = quantized_linears(key_directory(tmp_path))
    assert set(found) == {f"model.layers.{i}.{linear}" for i in range(3) for linear in LINEARS}
    for codes, params in found.values():
        assert int(codes.max()) < 2**scheme.bits
        groups = dequantize(codes, params).reshape(-1, scheme.group_size or codes.shape[1])
        assert max(len(group.unique()) for group in groups) <= 2**scheme.bits


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_everything_else_keeps_its_bits(method: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", attention_bias=True, mlp_bias=True)
    made(model, tmp_path / "storage", method)
    before, after = CheckpointReader(model), CheckpointReader(key_directory(tmp_path / "storage"))
    kept = [name for name in before.files if not any(name.endswith(f"{linear}.weight") for linear in LINEARS)]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < set(kept)
    assert sum("layernorm" in name for name in kept) == 6 and sum(name.endswith("bias") for name in kept) == 21
    stored = after.read(kept)
    for name, tensor in before.read(kept).items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name
    assert {name for name in after.files if "weight_" not in name} == set(kept)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", tie_word_embeddings=True)
    canary = made(model, tmp_path / "storage", "gptq").canary
    assert "lm_head.weight" not in CheckpointReader(key_directory(tmp_path / "storage")).files
    write_dense(key_directory(tmp_path / "storage"), tmp_path / "dense", "float32")
    dense = log_probabilities(tmp_path / "dense", canary.tokens)
    torch.testing.assert_close(torch.tensor(canary.quantized), dense, rtol=1e-5, atol=1e-5)


def test_rtn_through_the_pipeline_is_rtn_on_the_weights(tiny_llama: Path, tmp_path: Path) -> None:
    made(tiny_llama, tmp_path, "rtn", UniformScheme(bits=3))
    source = load_file(tiny_llama / ck.SINGLE)
    found = quantized_linears(key_directory(tmp_path))
    assert len(found) == 21
    for name, (codes, params) in found.items():
        weight = source[f"{name}.weight"].numpy()
        low, high = weight.min(1, keepdims=True).clip(max=0), weight.max(1, keepdims=True).clip(min=0)
        scale = ((high - low) / np.float32(7)).astype(np.float16).astype(np.float32)
        zero_point = np.round(-low / scale)
        expected = np.clip(np.round(weight / scale) + zero_point, 0, 7)
        np.testing.assert_array_equal(params.scale.numpy(), scale)
        np.testing.assert_array_equal(params.zero_point.numpy(), zero_point)
        np.testing.assert_array_equal(codes.numpy(), expected)


# --- statistics ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def inputs_of_linears(model: Any, windows: torch.Tensor, block: int) -> dict[str, torch.Tensor]:
    """What each linear of a block is called with in a forward pass of the whole model: [tokens, in]."""
    seen: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        return lambda module, args: seen.__setitem__(name, args[0].reshape(-1, args[0].shape[-1]))

    modules = {name: model.get_submodule(f"model.layers.{block}.{name}") for name in LINEARS}
    handles = [module.register_forward_pre_hook(remember(name)) for name, module in modules.items()]
    model(input_ids=windows)
    for handle in handles:
        handle.remove()
    return seen


def test_hessians_are_those_of_a_forward_pass_through_what_was_quantized_before(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    actual = vars(workers.block)["quantize_linear"]

    def spy(weight: torch.Tensor, statistics: Statistics, *rest: Any) -> Any:
        result = actual(weight, statistics, *rest)
        assert statistics.hessian is not None
        given.append(statistics.hessian.clone())
        weights.append(result.dense)
        return result

    monkeypatch.setattr(workers.block, "quantize_linear", spy)
    windows = random_windows(50, 64)  # two batches
    made(tiny_llama, tmp_path, "gptq", windows=windows)
    assert len(given) == 21
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for block in range(3):
        inputs = inputs_of_linears(model, torch.from_numpy(windows), block)
        for i, name in enumerate(LINEARS, start=7 * block):
            x = inputs[name].double()
            expected, magnitude = x.T @ x / len(x), x.abs().T @ x.abs() / len(x)
            # n products and sums in float32, of inputs that carry a few roundings themselves
            assert ((given[i] - expected).abs() <= 2 * len(x) * UNIT_ROUNDOFF * magnitude).all(), (block, name)
            model.get_submodule(f"model.layers.{block}.{name}").weight.data.copy_(weights[i])


@pytest.mark.parametrize(("method", "num_tokens"), [("rtn", 0), ("gptq", NUM_WINDOWS * WINDOW_TOKENS)])
def test_every_linear_is_reported_with_the_tokens_it_saw(
    method: str, num_tokens: int, tiny_llama: Path, tmp_path: Path
) -> None:
    manifest = made(tiny_llama, tmp_path, method)
    reports = manifest.layer_reports
    assert sorted((r.block, r.linear) for r in reports) == sorted((i, name) for i in range(3) for name in LINEARS)
    assert {r.num_tokens for r in reports} == {num_tokens}
    assert {r.degraded for r in reports} == {None} and not any(r.unchanged for r in reports)
    assert all((r.proxy_loss is not None and r.proxy_loss > 0) == (method == "gptq") for r in reports)
    assert manifest.bits_per_weight == pytest.approx(
        sum(r.bits_per_weight * r.num_weights for r in reports) / sum(r.num_weights for r in reports)
    )


# --- repetition ------------------------------------------------------------------------------------------------------


def test_the_same_request_twice_gives_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        made(tiny_llama, tmp_path / name, "gptq", SCHEMES["groups"])
    first, second = (shard_bytes(key_directory(tmp_path / name)) for name in ("first", "second"))
    assert first == second and len(first) == 4


def test_sharding_of_the_source_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    sharded = write_llama(tmp_path / "sharded", shard_size="100KB")
    made(tiny_llama, tmp_path / "one", "gptq")
    made(sharded, tmp_path / "many", "gptq")
    assert shard_bytes(key_directory(tmp_path / "one")) == shard_bytes(key_directory(tmp_path / "many"))


def test_a_finished_checkpoint_is_left_alone_and_a_damaged_one_made_again(tiny_llama: Path, tmp_path: Path) -> None:
    request = request_for(tiny_llama, tmp_path, "rtn")
    made(tiny_llama, tmp_path, "rtn")
    shard = key_directory(tmp_path) / "block-00001.safetensors"
    before, written = shard.read_bytes(), shard.stat().st_mtime_ns
    assert quantize(request) is None
    assert shard.stat().st_mtime_ns == written
    shard.write_bytes(before[:-1])
    assert quantize(request) is not None
    assert shard.read_bytes() == before


def test_of_two_that_want_one_checkpoint_the_second_waits_and_finds_it(tiny_llama: Path, tmp_path: Path) -> None:
    request = request_for(tiny_llama, tmp_path, "gptq")
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(quantize, [request, request])
    assert (first is None) != (second is None)
    assert ck.damage(key_directory(tmp_path), first or second or pytest.fail("neither made it")) is None


def test_the_manifest_speaks_for_every_file(tiny_llama: Path, tmp_path: Path) -> None:
    manifest = made(tiny_llama, tmp_path, "rtn")
    directory = key_directory(tmp_path)
    files = {path.name for path in directory.iterdir()} - {MANIFEST}
    assert set(manifest.files) == files and ck.INDEX in files and "config.json" in files
    assert ck.damage(directory, manifest) is None
    assert manifest.checkpoint_bytes == sum((directory / name).stat().st_size for name in files)
    assert ck.read_manifest(directory) == manifest
    assert not partial_directory(tmp_path, "key").exists()
    assert 0.1 < manifest.peak_memory_gib < 8 and manifest.seconds > 0


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def set_tensor(model: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(model / ck.SINGLE) | {name: tensor}, model / ck.SINGLE, {"format": "pt"})


def test_nan_in_a_weight_names_the_layer(model: Path, tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.k_proj.weight"
    set_tensor(model, name, torch.full((64, 64), float("nan")))
    with pytest.raises(NumericalError) as caught:
        made(model, tmp_path, "rtn")
    assert caught.value.layer == name


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_an_activation_that_overflows_names_where(method: str, model: Path, tmp_path: Path) -> None:
    set_tensor(model, "model.layers.1.input_layernorm.weight", torch.full((64,), 3e38))
    with pytest.raises(NumericalError) as caught:
        made(model, tmp_path, method)
    assert caught.value.layer is not None and caught.value.layer.startswith("model.layers.1")


def test_weights_already_on_the_grid_are_no_result(model: Path, tmp_path: Path) -> None:
    """Whole numbers that span all codes of 8 bits, so that the scale is exactly 1."""
    tensors = load_file(model / ck.SINGLE)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.removesuffix(".weight").split(".", 3)[-1] in LINEARS:
            tensors[name] = torch.randint(-128, 128, tensor.shape, generator=generator).float()
            tensors[name][:, 0], tensors[name][:, 1] = -128, 127
    save_file(tensors, model / ck.SINGLE, {"format": "pt"})
    with pytest.raises(NoOpError, match="all 21 selected linears are what they were before"):
        made(model, tmp_path, "rtn", UniformScheme(bits=8))


def test_a_full_disk_gives_back_what_was_written(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = ck.save_tensors, 0

    def full(path: Path, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, *args)

    monkeypatch.setattr(partial, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        made(tiny_llama, tmp_path, "rtn")
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_truncated_checkpoint_is_named_with_file_and_bytes(model: Path, tmp_path: Path) -> None:
    file = model / ck.SINGLE
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(whole - 4)
    with pytest.raises(BadInputError, match=f"model.safetensors: .*{whole - 4} bytes, its header promises {whole}"):
        made(model, tmp_path, "rtn")


def test_more_blocks_than_the_weights_have_are_named(model: Path, tmp_path: Path) -> None:
    edit_config(model, num_hidden_layers=4)
    with pytest.raises(BadInputError, match=r"`model.layers.3` does not fit config.json"):
        made(model, tmp_path, "rtn")


def test_calibration_tokens_of_another_tokenizer_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="the model's vocabulary has 128 entries"):
        made(tiny_llama, tmp_path, "rtn", windows=random_windows(8, 64, vocab_size=1000))


def test_a_config_without_an_architecture_we_know_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "unheard of"}))
    with pytest.raises(BadInputError, match=r"config.json: "):
        made(model, tmp_path, "rtn")
