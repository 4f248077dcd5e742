"""Statistics that cells share: the same codes with and without, and nothing that fails or is trusted blindly."""

import errno
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import workers.shared_statistics
import workers.statistics
from conf.schema import (
    AwqScale,
    BlockTune,
    GptaqRound,
    GptqRound,
    LearnedClip,
    MethodConf,
    NearestRound,
    NumericsConf,
    SearchClip,
    UniformScheme,
)
from tests.workers.arch.tiny import ref, write
from tests.workers.tiny_requests import METHODS, random_windows, request_for, shard_bytes
from workers import partial
from workers.api import Manifest, QuantizeRequest
from workers.calibration import token_hash
from workers.files import locked
from workers.layout import checkpoint_directory, statistics_directory, statistics_lock
from workers.methods.registry import shares_statistics
from workers.pipeline import quantize
from workers.shared_statistics import KEY, SharedStatistics, payload

AWQ = MethodConf(
    "awq",
    "salience",
    inputs="original",
    scale=AwqScale(num_windows=3),
    clip=SearchClip(num_tokens=100),
    round=NearestRound(),
)
OMNIQUANT = MethodConf(
    "omniquant", "optimization", clip=LearnedClip(), tune=BlockTune(learns=["clip"]), round=NearestRound()
)
CPU = NumericsConf(dtype="float32", device="cpu")
ALL, NONE, FIRST = {0, 1, 2}, set[int](), {0}


def request(
    model: Path, storage: Path, method: MethodConf, bits: int, *, gib: float = 1.0, **more: Any
) -> QuantizeRequest:
    scheme = UniformScheme(bits=bits, group_size=32)
    made = request_for(model, storage, "gptq", scheme, key=f"{method.name}-{bits}", windows=random_windows(70, 64))
    return replace(made, method=method, statistics_gib=gib, **more)


def run(asked: QuantizeRequest) -> tuple[Manifest, dict[str, bytes]]:
    manifest = quantize(asked)
    assert manifest is not None
    return manifest, shard_bytes(checkpoint_directory(Path(asked.storage), asked.quantize_key))


def taken(manifest: Manifest) -> set[int]:
    """The blocks whose statistics were there."""
    return {report.block for report in manifest.layer_reports if report.shared_statistics}


def again(asked: QuantizeRequest) -> tuple[Manifest, dict[str, bytes]]:
    """Made anew, with what the storage holds by now."""
    shutil.rmtree(checkpoint_directory(Path(asked.storage), asked.quantize_key))
    return run(asked)


def files(storage: Path) -> list[Path]:
    return sorted(statistics_directory(storage).glob("*/block-*"))


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "blocks"), [(METHODS["gptq"], FIRST), (AWQ, ALL)], ids=["gptq", "awq"])
def test_the_codes_are_the_same_alone_cold_and_warm(
    method: MethodConf, blocks: set[int], tiny_llama: Path, tmp_path: Path
) -> None:
    for bits, expected in ((2, NONE), (3, blocks)):
        alone, reference = run(request(tiny_llama, tmp_path / "alone", method, bits, gib=0.0))
        shared = request(tiny_llama, tmp_path / "shared", method, bits)
        cold, shards = run(shared)
        warm, repeated = again(shared)
        assert shards == reference and repeated == reference, bits
        assert (taken(alone), taken(cold), taken(warm)) == (NONE, expected, blocks)
        assert warm.canary == alone.canary
        strip = [replace(report, seconds=0.0, shared_statistics=False) for report in warm.layer_reports]
        assert strip == [replace(report, seconds=0.0) for report in alone.layer_reports]
    assert not statistics_directory(tmp_path / "alone").exists()


def test_the_codes_of_experts_are_the_same_alone_cold_and_warm(tmp_path: Path) -> None:
    model = write("mixtral", tmp_path / "mixtral")

    def asked(storage: Path, gib: float, bits: int) -> QuantizeRequest:
        scheme = UniformScheme(bits=bits)
        return replace(request(model, storage, AWQ, bits, gib=gib), model=ref("mixtral", model), scheme=scheme)

    reference = run(asked(tmp_path / "alone", 0.0, 3))[1]
    run(asked(tmp_path / "shared", 1.0, 2))
    manifest, shards = run(asked(tmp_path / "shared", 1.0, 3))
    assert taken(manifest) == {0, 1} and shards == reference


def test_methods_share_the_first_block(tiny_llama: Path, tmp_path: Path) -> None:
    reference = run(request(tiny_llama, tmp_path / "alone", METHODS["gptq"], 3, gib=0.0))[1]
    run(request(tiny_llama, tmp_path, AWQ, 3))
    manifest, shards = run(request(tiny_llama, tmp_path, METHODS["gptq"], 3))
    assert taken(manifest) == FIRST and shards == reference


def test_what_is_there_is_not_summed_again(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(request(tiny_llama, tmp_path, AWQ, 2))

    def never(*_: Any) -> None:
        raise AssertionError("a Hessian was summed")

    monkeypatch.setattr(workers.statistics, "accumulate_gram", never)
    assert taken(run(request(tiny_llama, tmp_path, AWQ, 3))[0]) == ALL


def test_a_resumed_cell_goes_on_from_outputs_that_were_taken(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tiny_llama, tmp_path, AWQ, 2)
    reference = run(asked)[1]
    shutil.rmtree(checkpoint_directory(tmp_path, asked.quantize_key))
    save, count = partial.save_block, 0

    def killed(*args: Any) -> None:
        nonlocal count
        save(*args)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(partial, "save_block", killed)
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    shutil.rmtree(statistics_directory(tmp_path))
    manifest, shards = run(asked)
    assert taken(manifest) == {0, 1} and shards == reference


@pytest.mark.parametrize(
    "change",
    [
        {"method": METHODS["quarot_gptq"]},
        {"numerics": NumericsConf(dtype="bfloat16", device="cpu")},
        {"windows": random_windows(71, 64)},
        {"threads": 1 + torch.get_num_threads()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_may_differ_in_the_last_bit_has_a_key_of_its_own(
    change: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tiny_llama, tmp_path, METHODS["gptq"], 3)
    tokens = token_hash(random_windows(70, 64))
    known = payload(asked, tokens)
    for same in ({"scheme": UniformScheme(bits=2)}, {"method": AWQ}, {"seed": 1}, {"quantize_key": "another"}):
        assert payload(replace(asked, **same), tokens) == known
    if "threads" in change:
        monkeypatch.setattr(torch, "get_num_threads", lambda: change["threads"])
    other = {key: value for key, value in change.items() if key in ("method", "numerics")}
    windows = change.get("windows", random_windows(70, 64))
    assert payload(replace(asked, **other), token_hash(windows)) != known


def test_each_seed_has_its_own_rotation(tiny_llama: Path, tmp_path: Path) -> None:
    rotated = [request(tiny_llama, tmp_path, METHODS["quarot_gptq"], 3, seed=seed) for seed in (0, 1)]
    assert payload(rotated[0], "tokens") != payload(rotated[1], "tokens")


@pytest.mark.parametrize(
    ("method", "numerics", "expected"),
    [
        (METHODS["gptq"], CPU, (True, False)),
        (METHODS["quip"], CPU, (True, False)),
        (AWQ, CPU, (True, True)),
        (replace(AWQ, inputs="quantized"), CPU, (True, False)),
        (METHODS["rtn"], CPU, (False, False)),
        (OMNIQUANT, CPU, (False, False)),
        (replace(OMNIQUANT, round=GptqRound()), CPU, (True, False)),
        (MethodConf("gptaq", "compensation", round=GptaqRound()), CPU, (False, False)),
        (AWQ, NumericsConf(dtype="bfloat16", device="cuda"), (False, False)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_block_s_statistics_are_shared_where_nothing_was_quantized_before_it(
    method: MethodConf, numerics: NumericsConf, expected: tuple[bool, bool]
) -> None:
    assert (shares_statistics(method, numerics, 0), shares_statistics(method, numerics, 1)) == expected


# --- files that are not what was written -----------------------------------------------------------------------------


def truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def turn_a_bit(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def put_another(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("spoil", [truncate, turn_a_bit, put_another])
def test_a_damaged_file_is_computed_anew_and_replaced(
    spoil: Any, tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = request(tiny_llama, tmp_path, AWQ, 3)
    reference = run(asked)[1]
    spoiled, other = (statistics_directory(tmp_path).glob(f"*/block-0000{i}.moments.safetensors") for i in (1, 2))
    path = next(spoiled)
    spoil(path, next(other))
    caplog.clear()
    manifest, shards = again(asked)
    assert taken(manifest) == {0, 2} and shards == reference
    assert [r.levelno for r in caplog.records if path.name in r.message] == [logging.WARNING]
    assert taken(again(asked)[0]) == ALL


# --- writing is optional ---------------------------------------------------------------------------------------------


def test_no_more_is_kept_than_allowed_and_that_is_said_once(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = run(request(tiny_llama, tmp_path / "ample", AWQ, 3))[1]
    sizes = [path.stat().st_size for path in files(tmp_path / "ample")]
    limit = 0.6 * sum(sizes)
    caplog.set_level(logging.INFO)
    asked = request(tiny_llama, tmp_path / "tight", AWQ, 3, gib=limit / 2**30)
    assert run(asked)[1] == reference
    held = sum(path.stat().st_size for path in statistics_directory(tmp_path / "tight").rglob("*") if path.is_file())
    assert 0.3 * sum(sizes) < held <= limit
    assert sum("cluster.statistics_gib" in record.message for record in caplog.records) == 1
    manifest, shards = again(asked)
    assert taken(manifest) == FIRST and shards == reference


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_storage_that_takes_none_fails_no_cell(
    code: int, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def refuse(path: Path, *_: Any) -> None:
        tries.append(path)
        raise OSError(code, "refused", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(workers.shared_statistics, "save_tensors", refuse)
        shards = run(request(tiny_llama, tmp_path, AWQ, 3))[1]
    assert shards == run(request(tiny_llama, tmp_path / "alone", AWQ, 3, gib=0.0))[1]
    assert len(tries) == 1 and files(tmp_path) == []
    assert [r.levelname for r in caplog.records if "not kept" in r.message] == ["WARNING"]


def test_a_storage_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    SharedStatistics(tmp_path / "gone", {}, 2**30).put(0, {"part": {"x": torch.zeros(3)}})
    assert not (tmp_path / "gone").exists()


def test_while_another_writes_nothing_is_waited_for(tmp_path: Path) -> None:
    statistics_directory(tmp_path).mkdir()
    shared, parts = SharedStatistics(tmp_path, {"key": 1}, 2**30), {"part": {"x": torch.arange(3.0)}}
    with locked(statistics_lock(tmp_path)):
        shared.put(0, parts)
    assert shared.take(0, ["part"]) is None
    shared.put(0, parts)
    found = shared.take(0, ["part"])
    assert found is not None and torch.equal(found["part"]["x"], parts["part"]["x"])
    assert (shared.directory / KEY).read_text() == '{\n "key": 1\n}\n'
