"""A model block by block is the model as a whole; checkpoints that do not fit are named."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.workers.tiny_requests import edit_config, model_ref, random_windows, write_llama
from workers.checkpoint import SINGLE
from workers.errors import BadInputError, NumericalError
from workers.stream import TOKENS_PER_BATCH, BlockStream

LLAMA_3_1 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "tied embeddings": {"tie_word_embeddings": True},
    "llama3.1 rope": {"rope_parameters": {**LLAMA_3_1, "rope_theta": 5e5, "original_max_position_embeddings": 16}},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def stream_of(model: Path, dtype: torch.dtype = torch.float32) -> BlockStream:
    return BlockStream(model_ref(model), model, dtype=dtype, device=torch.device("cpu"))


def in_blocks(model: Path, windows: torch.Tensor) -> torch.Tensor:
    """Log-probabilities by the block stream, [n, L - 1]."""
    stream = stream_of(model)
    batches, kwargs = stream.first_inputs(windows)
    for index in range(stream.num_blocks):
        with stream.block(index) as block:
            stream.run(block, batches, kwargs, batches.__setitem__)
    return stream.log_probabilities(batches, windows)


@torch.no_grad()
def whole(model: Path, windows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same by transformers' own forward pass."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    log_probabilities = torch.log_softmax(loaded(input_ids=windows).logits[:, :-1], dim=-1)
    return log_probabilities.gather(2, windows[:, 1:, None]).squeeze(2)


def assert_equal_but_for_rounding(model: Path, windows: torch.Tensor) -> None:
    """No further from the float64 model than twice what the whole float32 model is."""
    exact = whole(model, windows, torch.float64)
    allowed = 2 * (whole(model, windows) - exact).abs().max() + 1e-6
    assert (in_blocks(model, windows) - exact).abs().max() < allowed < 1e-3 * exact.abs().mean()


@pytest.mark.parametrize("variant", VARIANTS)
def test_block_by_block_is_the_whole_model(variant: str, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", **VARIANTS[variant])
    assert_equal_but_for_rounding(model, torch.from_numpy(random_windows(4, 100)))


def test_rope_as_older_configs_write_it_is_the_whole_model(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    scaling = {**LLAMA_3_1, "original_max_position_embeddings": 16}
    edit_config(model, rope_parameters=None, rope_theta=5e5, rope_scaling=scaling)
    plain = write_llama(tmp_path / "plain")
    windows = torch.from_numpy(random_windows(4, 100))
    assert_equal_but_for_rounding(model, windows)
    assert (in_blocks(model, windows) - in_blocks(plain, windows)).abs().max() > 0.1  # the scaling is not ignored


@pytest.mark.shared
def test_a_trained_model_block_by_block_is_the_whole_model(shared: Path) -> None:
    model = shared / "models" / "mini_reference"
    tokens = np.load(model / "tokens_held.npy")[: 8 * 256].astype(np.int64)
    assert_equal_but_for_rounding(model, torch.from_numpy(tokens.reshape(8, 256)))


def test_batches_do_not_change_the_numbers(tiny_llama: Path) -> None:
    windows = torch.from_numpy(random_windows(TOKENS_PER_BATCH // 64 + 3, 64))  # a full batch and a smaller one
    batches, _ = stream_of(tiny_llama).first_inputs(windows)
    assert [len(batch) for batch in batches] == [TOKENS_PER_BATCH // 64, 3]
    together = in_blocks(tiny_llama, windows)
    alone = torch.cat([in_blocks(tiny_llama, windows[i : i + 1]) for i in (0, 33)])
    torch.testing.assert_close(together[[0, 33]], alone, rtol=1e-5, atol=1e-5)


def test_a_window_longer_than_a_batch_is_one_batch(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model", num_hidden_layers=1, max_position_embeddings=4096)
    batches, _ = stream_of(model).first_inputs(torch.from_numpy(random_windows(2, TOKENS_PER_BATCH + 1)))
    assert [list(batch.shape) for batch in batches] == [[1, TOKENS_PER_BATCH + 1, 64]] * 2


def test_only_one_block_is_ever_in_memory(tiny_llama: Path) -> None:
    stream = stream_of(tiny_llama)
    stream.first_inputs(torch.from_numpy(random_windows(1, 8)))
    with stream.block(1):
        loaded = {name for name, parameter in stream.model.named_parameters() if parameter.device.type != "meta"}
        assert loaded and all(name.startswith("model.layers.1.") for name in loaded)
    assert all(parameter.device.type == "meta" for parameter in stream.model.parameters())


def test_weights_come_in_the_compute_dtype(tiny_llama: Path) -> None:
    stream = stream_of(tiny_llama, torch.bfloat16)
    with stream.block(0) as block:
        assert {parameter.dtype for parameter in block.parameters()} == {torch.bfloat16}
    batches, _ = stream.first_inputs(torch.from_numpy(random_windows(1, 8)))
    assert batches[0].dtype == torch.bfloat16


# --- checkpoints that are not what config.json says ------------------------------------------------------------------


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def change_tensors(model: Path, **changed: torch.Tensor | None) -> None:
    """Set tensors of the only shard, names with __ for dots; null removes one."""
    tensors: dict[str, torch.Tensor | None] = {**load_file(model / SINGLE)}
    tensors |= {name.replace("__", "."): tensor for name, tensor in changed.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, model / SINGLE, {"format": "pt"})


def test_frequencies_stored_by_older_checkpoints_are_not_in_the_way(tiny_llama: Path, model: Path) -> None:
    stored = {f"model__layers__{i}__self_attn__rotary_emb__inv_freq": torch.ones(16) for i in range(3)}
    change_tensors(model, **stored)
    windows = torch.from_numpy(random_windows(2, 16))
    assert torch.equal(in_blocks(model, windows), in_blocks(tiny_llama, windows))


def test_a_tensor_of_another_shape_is_named(model: Path) -> None:
    change_tensors(model, model__layers__1__mlp__up_proj__weight=torch.zeros(96, 32))
    with pytest.raises(BadInputError, match=r"`model.layers.1` does not fit config.json: .*mlp.up_proj.weight"):
        in_blocks(model, torch.zeros(1, 8, dtype=torch.int64))


def test_a_tensor_that_is_missing_is_named(model: Path) -> None:
    change_tensors(model, model__layers__2__post_attention_layernorm__weight=None)
    with pytest.raises(BadInputError, match=r"`model.layers.2` does not fit .*post_attention_layernorm.weight"):
        in_blocks(model, torch.zeros(1, 8, dtype=torch.int64))


def test_blocks_that_the_config_does_not_know_of_are_refused(model: Path) -> None:
    edit_config(model, num_hidden_layers=2)
    with pytest.raises(BadInputError, match=r"config.json says 2 blocks, but the weights hold 3; restore"):
        stream_of(model)


def test_names_of_another_architecture_are_named(model: Path) -> None:
    tensors = load_file(model / SINGLE)
    save_file({name.replace("model.", "transformer."): t for name, t in tensors.items()}, model / SINGLE)
    with pytest.raises(BadInputError, match=r"`model.embed_tokens` does not fit config.json: .*Missing key"):
        in_blocks(model, torch.zeros(1, 8, dtype=torch.int64))


def test_a_block_is_fed_as_far_as_its_hooks_need_it(tiny_llama: Path) -> None:
    stream = stream_of(tiny_llama)
    batches, kwargs = stream.first_inputs(torch.from_numpy(random_windows(40, 64)))
    assert len(batches) == 2
    seen: dict[str, list[torch.Tensor]] = {"mlp.gate_proj": [], "self_attn.o_proj": [], "mlp.down_proj": []}
    with stream.block(0) as block:
        for name, inputs in seen.items():
            hook = block.get_submodule(name).register_forward_pre_hook
            hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        stream.run(block, batches, kwargs)
        whole = {name: torch.cat(inputs) for name, inputs in seen.items()}
        for inputs in seen.values():
            inputs.clear()
        _, output, gate_up, _ = stream.groups(0)
        stream.feed(block, batches, kwargs, [gate_up, output])
    assert not seen["mlp.down_proj"]
    assert all(torch.equal(torch.cat(seen[name]), whole[name]) for name in ("mlp.gate_proj", "self_attn.o_proj"))


def test_a_missing_head_is_no_tied_one(model: Path) -> None:
    change_tensors(model, lm_head__weight=None)
    with pytest.raises(BadInputError, match=r"`lm_head` does not fit config.json"):
        in_blocks(model, torch.zeros(1, 8, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_weight_that_is_not_finite_is_named(model: Path, value: float) -> None:
    weight = torch.zeros(64, 96)
    weight[3, 5] = value
    change_tensors(model, model__layers__1__mlp__down_proj__weight=weight)
    with pytest.raises(NumericalError, match=r"^model.layers.1.mlp.down_proj.weight: .*NaN or Inf") as caught:
        in_blocks(model, torch.zeros(1, 8, dtype=torch.int64))
    assert caught.value.layer == "model.layers.1.mlp.down_proj.weight"


def test_running_out_of_gpu_memory_is_not_blamed_on_the_checkpoint(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(tiny_llama)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError), stream.block(0):
        pass
