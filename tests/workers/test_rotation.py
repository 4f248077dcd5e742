"""A rotated model computes what it did; what is quantized, stored and scored is the rotated one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import workers.block
from conf.schema import (
    HadamardRotate,
    KroneckerIncohere,
    LdlqRound,
    MethodConf,
    NearestRound,
    RandomRotate,
    RmsClip,
    RotateConf,
    UniformScheme,
)
from tests.workers.tiny_requests import METHODS, model_ref, random_windows, request_for, shard_bytes, write_llama
from workers import checkpoint as ck
from workers import partial
from workers.api import Manifest, QuantizeRequest
from workers.arch.llama import LLAMA
from workers.checkpoint import CheckpointReader
from workers.errors import BadInputError
from workers.export import stored_layout, write_dense
from workers.layout import checkpoint_directory
from workers.methods.refusals import refusals
from workers.methods.rotate.hadamard import draw_orthogonal
from workers.methods.statistics import Statistics
from workers.packing import layout_of, unpack
from workers.pipeline import quantize
from workers.rotation import Rotation
from workers.seeds import seed_of
from workers.stream import BlockStream

MODELS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "wide heads": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24},  # more than the residual stream
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
}
W8 = UniformScheme(bits=8, scale_dtype="float32")


def write_uneven(directory: Path, **sizes: Any) -> Path:
    """A random LLaMA whose gains and biases are no longer one and zero."""
    write_llama(directory, **sizes)
    tensors = load_file(directory / ck.SINGLE)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.mul_(torch.exp(torch.randn(len(tensor), generator=generator) / 2))
        elif name.endswith("bias"):
            tensor.normal_(generator=generator)
    save_file(tensors, directory / ck.SINGLE, {"format": "pt"})
    return directory


def stream_of(model: Path) -> BlockStream:
    return BlockStream(model_ref(model), model, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(torch.from_numpy(random_windows(2, 50))).logits
    return result


def load(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def rotate(model: Any, rotation: Rotation, stream: BlockStream) -> None:
    """All of a model held by Transformers."""
    for index in range(stream.num_blocks):
        path = f"model.layers.{index}"
        rotation.turn_block(model.get_submodule(path), stream.groups(index), path)
    for name, tensor in rotation.outside(stream).items():
        path, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(path), parameter, nn.Parameter(tensor))


@pytest.mark.parametrize("conf", [HadamardRotate(), RandomRotate(), HadamardRotate(residual=False)], ids=str)
@pytest.mark.parametrize("sizes", MODELS)
def test_10_a_rotated_model_has_the_same_logits(sizes: str, conf: RotateConf, tmp_path: Path) -> None:
    directory = write_uneven(tmp_path / "model", **MODELS[sizes])
    stream, model = stream_of(directory), load(directory)
    before, weight = logits(model), model.model.layers[1].self_attn.v_proj.weight.clone()
    rotate(model, Rotation(conf, LLAMA, 64, stream.head_dim, seed=3), stream)
    assert (model.model.layers[1].self_attn.v_proj.weight - weight).norm() > 0.1 * weight.norm()
    assert (logits(model) - before).abs().max() < 1e-5 * before.abs().max()


def test_gains_become_one_and_the_embedding_turns(tmp_path: Path) -> None:
    directory = write_uneven(tmp_path / "model")
    stream, model = stream_of(directory), load(directory)
    source = load_file(directory / ck.SINGLE)
    rotate(model, Rotation(HadamardRotate(), LLAMA, 64, 32, seed=3), stream)
    gains = {name: p for name, p in model.named_parameters() if "norm" in name}
    assert len(gains) == 7 and all(torch.equal(gain, torch.ones(64)) for gain in gains.values())
    turned = draw_orthogonal(64, seed_of(3, "residual")).apply(source["model.embed_tokens.weight"].double()).float()
    assert torch.equal(model.model.embed_tokens.weight, turned)


def test_a_size_without_a_hadamard_matrix_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadInputError, match=r"^method.rotate: no Hadamard matrix of size 92 .* method.rotate=random$"):
        Rotation(HadamardRotate(), LLAMA, 92, 46, seed=0)
    with pytest.raises(BadInputError, match="no Hadamard matrix of size 46 "):
        Rotation(HadamardRotate(residual=False), LLAMA, 92, 46, seed=0)
    Rotation(RandomRotate(), LLAMA, 92, 46, seed=0)


def test_rotations_that_do_nothing_are_refused() -> None:
    (reason,) = refusals(
        MethodConf("m", "rotation", rotate=HadamardRotate(False, False, False), round=NearestRound()), W8
    )
    assert reason.startswith("method.rotate: residual, heads, intermediate are all false")
    (reason,) = refusals(dataclasses.replace(METHODS["none"], rotate=RandomRotate()), W8)
    assert reason.startswith("method.rotate: the 16-bit baseline")


# --- through the pipeline --------------------------------------------------------------------------------------------


def request(model: Path, storage: Path, method: str, scheme: UniformScheme = W8, **slots: Any) -> QuantizeRequest:
    asked = request_for(model, storage, method, scheme)
    return dataclasses.replace(asked, method=dataclasses.replace(asked.method, **slots))


def made(asked: QuantizeRequest) -> Manifest:
    manifest = quantize(asked)
    assert manifest is not None
    return manifest


def dense(storage: Path, directory: Path) -> Path:
    write_dense(checkpoint_directory(storage, "key"), directory, "float32")
    return directory


@torch.no_grad()
def log_probabilities(model: Path, tokens: list[list[int]]) -> Tensor:
    prompts = torch.tensor(tokens)
    rows = torch.log_softmax(load(model)(input_ids=prompts).logits[:, :-1], dim=-1)
    return rows.gather(2, prompts[:, 1:, None]).squeeze(2)


@pytest.mark.parametrize("method", ["quarot", "quarot_gptq"])
@pytest.mark.parametrize("sizes", MODELS)
def test_10_a_rotated_checkpoint_at_eight_bits_is_nearly_the_model_and_an_ordinary_one(
    sizes: str, method: str, tmp_path: Path
) -> None:
    model = write_uneven(tmp_path / "model", **MODELS[sizes])
    canary = made(request(model, tmp_path / "storage", method)).canary
    multiplied = dense(tmp_path / "storage", tmp_path / "dense")
    torch.testing.assert_close(
        torch.tensor(canary.quantized), log_probabilities(multiplied, canary.tokens), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        torch.tensor(canary.reference), log_probabilities(model, canary.tokens), rtol=1e-4, atol=1e-4
    )
    difference = (torch.tensor(canary.quantized) - torch.tensor(canary.reference)).abs().mean()
    assert 0 < difference < 0.05 * torch.tensor(canary.reference).abs().mean()
    assert json.loads((multiplied / "config.json").read_text())["tie_word_embeddings"] is False
    names = set(CheckpointReader(model).files) | {"lm_head.weight"}
    assert set(CheckpointReader(multiplied).files) == names


def test_without_the_intermediate_turn_the_packed_checkpoint_is_one_that_transformers_reads(tmp_path: Path) -> None:
    model = write_uneven(tmp_path / "model", **MODELS["grouped-query"])
    made(request(model, tmp_path / "storage", "quarot", rotate=HadamardRotate(intermediate=False)))
    packed = checkpoint_directory(tmp_path / "storage", "key")
    config = json.loads((packed / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    multiplied = dense(tmp_path / "storage", tmp_path / "dense")
    assert torch.equal(logits(load(packed)), logits(load(multiplied)))


def test_19_inputs_that_no_fold_reaches_are_rounded_in_a_basis_of_their_own(tmp_path: Path) -> None:
    model = write_uneven(tmp_path / "model")
    asked = request(model, tmp_path / "storage", "quarot", UniformScheme(bits=2))
    manifest = made(asked)
    packed = checkpoint_directory(tmp_path / "storage", "key")
    layout = stored_layout(packed)
    assert layout == layout_of(asked.method, asked.scheme) and not layout.is_common
    reader = CheckpointReader(packed)
    for report in manifest.layer_reports:
        linear = f"model.layers.{report.block}.{report.linear}"
        parts = reader.read(reader.names(f"{linear}.weight_"))
        codes, params, basis = unpack({n.removeprefix(f"{linear}."): t for n, t in parts.items()}, layout)
        is_down = report.linear == "mlp.down_proj"
        assert (basis is not None) == is_down
        assert max(len(row.unique()) for row in params.values(codes)) <= 4
        turned = " incohere=hadamard(input, online)" if is_down else ""
        assert report.applied == f"rotate=hadamard{turned} clip=minmax round=nearest"
        rows, columns = codes.shape
        seed = 64 if is_down else 0  # the basis is stored as what it is drawn from
        assert report.bits_per_weight == pytest.approx(2 + 18 / columns + seed / (rows * columns))


def test_only_what_is_rotated_is_reported_and_changed(tmp_path: Path) -> None:
    model = write_uneven(tmp_path / "model", tie_word_embeddings=True)
    rotate = HadamardRotate(residual=False, intermediate=False)
    manifest = made(request(model, tmp_path / "storage", "quarot", rotate=rotate))
    turned = {r.linear for r in manifest.layer_reports if r.applied.startswith("rotate=hadamard ")}
    assert turned == {"self_attn.v_proj", "self_attn.o_proj"}
    before, after = CheckpointReader(model), CheckpointReader(checkpoint_directory(tmp_path / "storage", "key"))
    kept = [name for name in before.files if "norm" in name or "embed" in name]
    stored = after.read(kept)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in before.read(kept).items())
    assert "lm_head.weight" not in after.files


def test_a_linear_s_own_basis_comes_after_the_rotation(tmp_path: Path) -> None:
    model = write_uneven(tmp_path / "model")
    slots = {"incohere": KroneckerIncohere(), "clip": RmsClip(), "round": LdlqRound()}
    manifest = made(request(model, tmp_path / "storage", "quarot", UniformScheme(bits=4), **slots))
    assert {r.applied for r in manifest.layer_reports} == {
        "rotate=hadamard incohere=kronecker clip=rms(2.4) round=ldlq"
    }
    multiplied = log_probabilities(dense(tmp_path / "storage", tmp_path / "dense"), manifest.canary.tokens)
    torch.testing.assert_close(torch.tensor(manifest.canary.quantized), multiplied, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", ["quantized", "original"])
def test_08_the_hessian_of_a_rotated_model_is_the_rotated_hessian(
    inputs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first block, whose inputs are the same: q reads the residual stream behind a gain, o the heads' values."""
    model = write_uneven(tmp_path / "model", **MODELS["grouped-query"])
    seen: dict[str, list[Tensor]] = {"gptq": [], "quarot_gptq": []}
    actual = vars(workers.block)["quantize_linear"]
    for method, hessians in seen.items():

        def spy(weight: Tensor, statistics: Statistics, *rest: Any, found: list[Tensor] = hessians) -> Any:
            assert statistics.hessian is not None
            found.append(statistics.hessian.double())
            return actual(weight, statistics, *rest)

        monkeypatch.setattr(workers.block, "quantize_linear", spy)
        made(request(model, tmp_path / method, method, inputs=inputs))
    gain = load_file(model / ck.SINGLE)["model.layers.0.input_layernorm.weight"].double()
    residual = draw_orthogonal(64, seed_of(0, "residual"))
    plain, rotated = seen["gptq"][0] / gain / gain[:, None], seen["quarot_gptq"][0]
    expected = residual.apply(residual.apply(plain).mT)
    assert (rotated - expected).norm() < 1e-4 * expected.norm()
    heads = draw_orthogonal(16, seed_of(0, "model.layers.0.heads"))
    turn = torch.block_diag(*[heads.apply(torch.eye(16, dtype=torch.float64)).mT] * 4)
    expected = turn @ seen["gptq"][3] @ turn.mT
    assert (seen["quarot_gptq"][3] - expected).norm() < 1e-4 * expected.norm()


def test_23_what_was_interrupted_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_uneven(tmp_path / "model")
    whole = request(model, tmp_path / "whole", "quarot_gptq", UniformScheme(bits=3))
    expected = made(whole)

    class Killed(BaseException):
        """Stands for a signal."""

    save, calls = partial.save_block, 0

    def interrupted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        save(*args)

    again = request(model, tmp_path / "again", "quarot_gptq", UniformScheme(bits=3))
    with monkeypatch.context() as patch:
        patch.setattr(partial, "save_block", interrupted)
        with pytest.raises(Killed):
            quantize(again)
    finished = made(again)
    assert finished.canary == expected.canary
    assert shard_bytes(checkpoint_directory(tmp_path / "again", "key")) == shard_bytes(
        checkpoint_directory(tmp_path / "whole", "key")
    )
