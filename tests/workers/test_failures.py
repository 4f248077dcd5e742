"""Every row of the failure table that a worker can raise: its kind, and a message that says what, where and what next.

Errors at the border of a library are raised as the library raises them; damaged models are really damaged, and go
through the stages.
"""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import requests
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

import kernels
from conf.schema import SuiteConf, TextConf
from tests.workers.tiny_requests import edit_config, random_windows, request_for, write_llama, write_tokenizer
from workers import errors
from workers.api import AttemptResult, EvaluateRequest, Failure, FailureKind, QuantizeRequest, TextRef, from_json
from workers.datasets import content_hash
from workers.entry import EngineHost, quantize_stage
from workers.failures import classify

NODE = os.uname().nodename


def http_error(status: int) -> httpx2.HTTPStatusError:
    request = httpx2.Request("GET", "https://hub.invalid/x")
    return httpx2.HTTPStatusError(f"status {status}", request=request, response=httpx2.Response(status))


def caused(error: Exception, cause: Exception) -> Exception:
    """`raise error from cause`."""
    error.__cause__ = cause
    return error


def while_handling(error: Exception, handled: Exception) -> Exception:
    """`raise error` in an `except`."""
    error.__context__ = handled
    return error


# --- errors to kinds -------------------------------------------------------------------------------------------------

CUDA = "CUDA error: an illegal memory access was encountered"
KERNELS = [f"{operation}: {version}" for operation, version in kernels.status().items()]
ROWS: list[tuple[Exception, str, list[str]]] = [
    (errors.TransientError("hub"), "TRANSIENT", ["hub"]),
    (errors.BadInputError("shard"), "BAD_INPUT", ["shard"]),
    (errors.NumericalError("NaN", layer="layers.3"), "NUMERICAL", ["layers.3: NaN"]),
    (errors.EngineError("vLLM died"), "ENGINE", ["vLLM died", "checkpoint is kept", "`resubmit` goes on", "log.txt"]),
    (errors.ParityError("apart"), "PARITY", ["apart", "checkpoint is kept", "`resubmit` goes on", "log.txt"]),
    (errors.NoOpError("unchanged"), "NO_OP", ["unchanged"]),
    (errors.PrerequisiteError("no file"), "PREREQUISITE", ["no file"]),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "OUT_OF_MEMORY", ["2 GiB", NODE]),
    (RuntimeError("CUDA error: out of memory"), "OUT_OF_MEMORY", [NODE]),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "OUT_OF_MEMORY", [NODE]),
    (caused(errors.EngineError("vLLM could not load"), torch.OutOfMemoryError("of 80 GiB")), "OUT_OF_MEMORY", ["vLLM"]),
    (errors.EngineError("vLLM could not load: CUDA out of memory. Tried ..."), "OUT_OF_MEMORY", ["could not load"]),
    (torch.AcceleratorError(CUDA), "CUDA", [CUDA, NODE, *KERNELS]),
    (RuntimeError("CUDA error: device-side assert triggered"), "CUDA", [NODE, *KERNELS]),
    (caused(errors.EngineError("vLLM could not score"), torch.AcceleratorError(CUDA)), "CUDA", ["vLLM", *KERNELS]),
    (MemoryError(), "WORKER_LOST", ["MemoryError", NODE]),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "WORKER_LOST", [NODE]),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"), "WORKER_LOST", [NODE]),
    (OSError(errno.EIO, "Input/output error", "/nfs/x"), "WORKER_LOST", ["/nfs/x", NODE]),
    (OSError(errno.ESTALE, "Stale file handle", "/nfs/x"), "WORKER_LOST", ["/nfs/x", NODE]),
    (OSError(errno.ENOSPC, "No space left on device", "/s/x"), "DISK_FULL", ["/s/x", NODE, "is removed"]),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "DISK_FULL", ["quota", NODE, "is removed"]),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "DISK_FULL", [NODE]),
    (caused(RuntimeError("cannot save"), OSError(errno.ENOSPC, "No space left")), "DISK_FULL", ["cannot save"]),
    (ConnectionResetError("reset by peer"), "TRANSIENT", ["reset by peer", NODE]),
    (TimeoutError("timed out"), "TRANSIENT", ["timed out"]),
    (httpx2.ReadTimeout("slow"), "TRANSIENT", ["ReadTimeout"]),
    (requests.exceptions.ReadTimeout("slow"), "TRANSIENT", ["ReadTimeout"]),
    (http_error(503), "TRANSIENT", ["503"]),
    (http_error(429), "TRANSIENT", ["429"]),
    (LocalEntryNotFoundError("cannot reach the hub"), "TRANSIENT", ["cannot reach"]),
    (caused(ValueError("no data set"), requests.ConnectionError("refused")), "TRANSIENT", ["no data set", "refused"]),
    (while_handling(ValueError("no data set"), http_error(500)), "TRANSIENT", ["no data set", "status 500"]),
    (http_error(401), "PREREQUISITE", ["401", "cluster.secrets.HF_TOKEN="]),
    (ConnectionError("Couldn't reach 'o/n' on the Hub (OfflineModeIsEnabled)"), "PREREQUISITE", ["'o/n'"]),
    (http_error(404), "PREREQUISITE", ["404"]),
    (caused(ConnectionError("could not connect"), http_error(403)), "PREREQUISITE", ["could not connect", "403"]),
    (caused(LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline")), "PREREQUISITE", ["offline"]),
    (caused(errors.EngineError("the engine died"), ConnectionResetError("reset")), "ENGINE", ["the engine died"]),
    (caused(errors.BadInputError("no such shard"), http_error(404)), "BAD_INPUT", ["no such shard"]),
    (FileNotFoundError(errno.ENOENT, "No such file", "/x"), "INTERNAL", ["/x"]),
    (ZeroDivisionError("division by zero"), "INTERNAL", ["ZeroDivisionError: division by zero"]),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "INTERNAL", ["RuntimeError"]),
]


@pytest.mark.parametrize(("error", "kind", "words"), ROWS, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_every_error_has_its_row_in_the_failure_table(error: Exception, kind: str, words: list[str]) -> None:
    failure = classify("quantize", error)
    assert (failure.stage, failure.kind) == ("quantize", FailureKind(kind))
    assert not [word for word in words if word not in failure.message], failure.message


def test_every_kind_that_a_worker_can_see_is_in_that_table() -> None:
    elsewhere = {"TIMEOUT", "CANCELLED"}  # the driver's to say
    assert {kind for _, kind, _ in ROWS} | elsewhere == set(FailureKind)


def test_a_failure_names_its_layer_and_keeps_the_traceback() -> None:
    def work() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError as error:
            raise errors.NumericalError("Hessian is not finite", layer="layers.3") from error

    with pytest.raises(errors.NumericalError) as raised:
        work()
    failure = classify("quantize", raised.value)
    assert failure.layer == "layers.3"
    assert failure.message == "layers.3: Hessian is not finite"
    assert failure.traceback is not None
    assert "ZeroDivisionError" in failure.traceback and "in work" in failure.traceback


# --- damaged models through the stages -------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Its weights in several shards."""
    return write_llama(tmp_path / "model", shard_size="150KB", num_hidden_layers=2)


def quantized(model: Path, storage: Path, method: str = "rtn") -> tuple[QuantizeRequest, Failure | None]:
    request = request_for(model, storage, method)
    attempt = storage / "attempt"
    attempt.mkdir(exist_ok=True)
    request = dataclasses.replace(request, attempt_directory=str(attempt))
    return request, quantize_stage(request)


def failed(model: Path, storage: Path) -> Failure:
    """The failure of a cell of this model, which result.json holds too."""
    _, failure = quantized(model, storage)
    assert failure is not None
    assert from_json(AttemptResult, (storage / "attempt" / "result.json").read_text()).failure == failure
    assert {path.name for path in (storage / "attempt").iterdir()} == {"log.txt", "result.json"}
    return failure


def first_shard(model: Path) -> tuple[Path, str]:
    """The shard of a tensor of the first block, and the tensor's name."""
    name = "model.layers.0.self_attn.q_proj.weight"
    return model / json.loads((model / "model.safetensors.index.json").read_text())["weight_map"][name], name


def truncate(model: Path) -> list[str]:
    shard, _ = first_shard(model)
    size = shard.stat().st_size
    os.truncate(shard, size - 100)  # in the middle of its last tensor
    return [str(shard), f"the file has {size - 100} bytes, its header promises {size}", "copy it"]


def damage_header(model: Path) -> list[str]:
    shard, _ = first_shard(model)
    shard.write_bytes(b"\xff" * 64)
    return [str(shard), "the file has 64 bytes", "its header is damaged", "copy it"]


def lose_shard(model: Path) -> list[str]:
    shard, _ = first_shard(model)
    shard.unlink()
    return [str(shard), "shard is missing", "first `model.", "copy or download it"]


def lose_tensor(model: Path) -> list[str]:
    shard, name = first_shard(model)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, {"format": "pt"})
    return [str(shard), name, "copy it"]


def pickle_weights(model: Path) -> list[str]:
    for path in model.glob("model*"):
        path.unlink()
    torch.save({}, model / "pytorch_model.bin")
    return [str(model), "only pickled weights (pytorch_model.bin)", "save_pretrained"]


def change_tokenizer(model: Path) -> list[str]:
    """The calibration's tokens are given, so the tokenizer itself is broken."""
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    return [str(model), "tokenizer cannot be loaded"]


def change_config(model: Path) -> list[str]:
    edit_config(model, hidden_size=32)
    return [str(model), "does not fit config.json", "model.embed_tokens"]


DAMAGES = [truncate, damage_header, lose_shard, lose_tensor, pickle_weights, change_tokenizer, change_config]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_bad_input_that_names_the_file_and_what_to_do(
    model: Path, tmp_path: Path, damage: Callable[[Path], list[str]]
) -> None:
    words = damage(model)
    failure = failed(model, tmp_path / "storage")
    assert failure.kind is FailureKind.BAD_INPUT, failure.traceback
    assert not [word for word in words if word not in failure.message], failure.message


def test_weights_that_are_no_numbers_name_their_layer(model: Path, tmp_path: Path) -> None:
    shard, name = first_shard(model)
    tensors = load_file(shard)
    tensors[name][3, 5] = torch.inf
    save_file(tensors, shard, {"format": "pt"})
    failure = failed(model, tmp_path / "storage")
    assert (failure.kind, failure.layer) == (FailureKind.NUMERICAL, name)


def evaluate_request(quantize: QuantizeRequest, model: Path) -> EvaluateRequest:
    held = Path(quantize.storage) / "held.npy"
    np.save(held, random_windows(1, 256)[0])
    return EvaluateRequest(
        evaluate_key="evaluation",
        quantize_key=quantize.quantize_key,
        model=quantize.model,
        suite=SuiteConf("tokens", sequence_length=64, perplexity={"held": TextConf("tokens", str(held))}),
        texts={"held": TextRef("tokens", str(held), content_hash(held))},
        engine="transformers",
        dtype="float32",
        storage=quantize.storage,
        attempt_directory=quantize.attempt_directory,
    )


def test_a_shard_that_this_node_has_only_in_part_is_named_before_an_engine_stumbles_over_it(
    model: Path, tmp_path: Path
) -> None:
    request, failure = quantized(model, tmp_path / "storage", "none")
    assert failure is None
    words = truncate(model)
    failure = EngineHost("transformers", 1).evaluate(evaluate_request(request, model))
    assert failure is not None and (failure.stage, failure.kind) == ("evaluate", FailureKind.BAD_INPUT)
    assert not [word for word in words if word not in failure.message], failure.message


def test_a_text_of_another_tokenizer_is_refused_before_it_reaches_the_embedding(model: Path, tmp_path: Path) -> None:
    request, failure = quantized(model, tmp_path / "storage")
    assert failure is None
    (tmp_path / "text.txt").write_text(" ".join(f"t{i % 200}" for i in range(300)))
    write_tokenizer(model, 200)  # more words than the model's 128
    text = TextRef("text", str(tmp_path / "text.txt"), content_hash(tmp_path / "text.txt"))
    asked = dataclasses.replace(evaluate_request(request, model), texts={"held": text})
    failure = EngineHost("transformers", 1).evaluate(asked)
    assert failure is not None and failure.kind is FailureKind.BAD_INPUT, failure
    for words in ("token id 128", "vocabulary has 128 entries", "model.tokenizer="):
        assert words in failure.message


# --- a disk that is really full --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 700 KB."""
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(mountpoint)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield mountpoint
    subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)


def test_a_disk_that_fills_while_quantizing_is_left_as_it_was_with_the_failure_on_it(
    model: Path, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(400_000))
    failure = failed(model, small_disk)
    assert failure.kind is FailureKind.DISK_FULL, failure.traceback
    assert str(small_disk) in failure.message and "is removed" in failure.message
    assert not list((small_disk / "checkpoints").iterdir())


def test_a_disk_that_fills_while_scoring_keeps_the_checkpoint_and_no_dense_copy(model: Path, small_disk: Path) -> None:
    request, failure = quantized(model, small_disk)
    assert failure is None
    asked = evaluate_request(request, model)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 100_000))
    failure = EngineHost("transformers", 1).evaluate(asked)
    assert failure is not None and failure.kind is FailureKind.DISK_FULL, failure
    result = from_json(AttemptResult, (small_disk / "attempt" / "result.json").read_text())
    assert result.failure == failure and result.quantize is not None
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == [request.quantize_key]


def test_on_a_disk_without_any_room_the_driver_still_hears_of_it(model: Path, small_disk: Path) -> None:
    request, failure = quantized(model, small_disk)
    assert failure is None
    asked = evaluate_request(request, model)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    failure = EngineHost("transformers", 1).evaluate(asked)
    assert failure is not None and failure.kind is FailureKind.DISK_FULL
    assert not (small_disk / "attempt" / "result.json").exists()
