"""The border of a worker: every error becomes data in the attempt, and nothing a stage prints is lost or leaks."""

import dataclasses
import errno
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from conf.schema import CalibrationConf, GptqRound, MethodConf, NumericsConf, SuiteConf, UniformScheme
from workers import errors
from workers.api import (
    AttemptResult,
    Canary,
    EvaluateRequest,
    EvaluateResult,
    FailureKind,
    Manifest,
    Metric,
    ModelRef,
    QuantizeRequest,
    QuantizeResult,
    TextRef,
    from_json,
)
from workers.entry import EXIT_CODE, EngineHost, quantize_stage

REPOSITORY = Path(__file__).parents[2]
MODEL = ModelRef("tiny", "/models/tiny", "llama", "sha256:0")
MANIFEST = Manifest("q", "s", "packed", "h", 8, 3.5, 100, Canary([], [], []), [], {}, 12.5, 0.75, {})
EVALUATED = EvaluateResult([Metric("t.perplexity", 7.5, None, 8, "1")], "5.19.0", "fresh", 0.0)


@pytest.fixture
def quantize_request(tmp_path: Path) -> QuantizeRequest:
    return QuantizeRequest(
        evaluate_key="e",
        quantize_key="q",
        model=MODEL,
        method=MethodConf("gptq", "compensation", round=GptqRound()),
        scheme=UniformScheme(bits=3),
        calibration=CalibrationConf("text", "text"),
        calibration_text=TextRef("text", "/t", "sha256:1"),
        seed=0,
        numerics=NumericsConf(),
        storage=str(tmp_path),
        attempt_directory=str(tmp_path),
    )


@pytest.fixture
def evaluate_request(tmp_path: Path) -> EvaluateRequest:
    return EvaluateRequest(
        evaluate_key="e",
        quantize_key="q",
        model=MODEL,
        suite=SuiteConf("text"),
        texts={},
        engine="transformers",
        dtype="float32",
        storage=str(tmp_path),
        attempt_directory=str(tmp_path),
    )


@pytest.fixture
def quantizing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Puts a function in the place of the pipeline."""

    def install(work: Callable[[], Any]) -> None:
        module = types.SimpleNamespace(quantize=lambda request: work())
        monkeypatch.setitem(sys.modules, "workers.pipeline", module)

    return install


class _Evaluator:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def evaluating(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[_Evaluator]]:
    """Puts a function in the place of the evaluation; returns the evaluators that were opened."""

    def install(work: Callable[[], Any]) -> list[_Evaluator]:
        opened: list[_Evaluator] = []

        def open_evaluator(engine: str, tensor_parallel_size: int) -> _Evaluator:
            opened.append(_Evaluator())
            return opened[-1]

        module = types.SimpleNamespace(evaluate=lambda evaluator, request: work(), open_evaluator=open_evaluator)
        monkeypatch.setitem(sys.modules, "workers.evaluate", module)
        return opened

    return install


def raising(error: Exception) -> Callable[[], Any]:
    def work() -> None:
        raise error

    return work


def result_in(directory: Path) -> AttemptResult:
    return from_json(AttemptResult, (directory / "result.json").read_text())


# --- quantize --------------------------------------------------------------------------------------------------------


def test_a_made_checkpoint_leaves_its_figures(
    tmp_path: Path, quantize_request: QuantizeRequest, quantizing: Callable[[Callable[[], Any]], None]
) -> None:
    quantizing(lambda: MANIFEST)
    assert quantize_stage(quantize_request) is None
    result = from_json(QuantizeResult, (tmp_path / "quantize.json").read_text())
    assert (result.checkpoint, result.seconds, result.peak_memory_gib) == ("q", 12.5, 0.75)
    assert not (tmp_path / "result.json").exists()


def test_a_stage_that_raises_writes_its_result(
    tmp_path: Path, quantize_request: QuantizeRequest, quantizing: Callable[[Callable[[], Any]], None]
) -> None:
    quantizing(raising(errors.NumericalError("NaN", layer="layers.3")))
    failure = quantize_stage(quantize_request)
    result = result_in(tmp_path)
    assert failure is not None and result.failure == failure
    assert (result.status, failure.kind, failure.layer) == ("FAILED", FailureKind.NUMERICAL, "layers.3")
    assert "NUMERICAL: layers.3: NaN" in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "quantize.json").exists()


def test_a_result_that_is_there_already_stands(
    tmp_path: Path, quantize_request: QuantizeRequest, quantizing: Callable[[Callable[[], Any]], None]
) -> None:
    (tmp_path / "result.json").write_text("the driver was here first")
    quantizing(raising(errors.NumericalError("NaN")))
    quantize_stage(quantize_request)
    assert (tmp_path / "result.json").read_text() == "the driver was here first"


def test_for_debugging_errors_come_through_as_they_are(
    tmp_path: Path, quantize_request: QuantizeRequest, quantizing: Callable[[Callable[[], Any]], None]
) -> None:
    quantizing(raising(ZeroDivisionError("here")))
    with pytest.raises(ZeroDivisionError, match="here"):
        quantize_stage(quantize_request, capture_output=False)
    assert not (tmp_path / "result.json").exists()


DIE = """
import sys, types
from conf.schema import *
from workers.api import *
from workers.entry import quantize_stage

def quantize(request):
    raise RuntimeError(sys.argv[2])

sys.modules["workers.pipeline"] = types.SimpleNamespace(quantize=quantize)
quantize_stage(QuantizeRequest("e", "q", ModelRef("m", "r", "llama", "f"), MethodConf(), UniformScheme(),
    CalibrationConf(), TextRef("text", None, "f"), 0, NumericsConf(), sys.argv[1], sys.argv[1]))
print("still alive")
"""


@pytest.mark.parametrize(
    ("words", "kind"),
    [("CUDA error: out of memory", FailureKind.OUT_OF_MEMORY), ("CUDA error: illegal address", FailureKind.CUDA)],
)
def test_after_an_error_of_the_gpu_the_process_ends_with_its_result_written(
    tmp_path: Path, words: str, kind: FailureKind
) -> None:
    command = [sys.executable, "-c", DIE, str(tmp_path), words]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == EXIT_CODE
    assert "still alive" not in ended.stdout
    failure = result_in(tmp_path).failure
    assert failure is not None and failure.kind is kind
    assert words in (tmp_path / "log.txt").read_text()


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_a_scored_cell_has_the_whole_attempt_in_its_result(
    tmp_path: Path,
    quantize_request: QuantizeRequest,
    evaluate_request: EvaluateRequest,
    quantizing: Callable[[Callable[[], Any]], None],
    evaluating: Callable[[Callable[[], Any]], list[_Evaluator]],
) -> None:
    quantizing(lambda: MANIFEST)
    evaluating(lambda: EVALUATED)
    quantize_stage(quantize_request)
    assert EngineHost("transformers", 1).evaluate(evaluate_request) is None
    result = result_in(tmp_path)
    assert (result.status, result.failure) == ("SUCCEEDED", None)
    assert result.evaluate is not None and set(result.evaluate.seconds) == {"import"}  # the host's first cell pays it
    assert dataclasses.replace(result.evaluate, seconds={}) == EVALUATED
    assert result.quantize is not None and result.quantize.seconds == 12.5


def test_a_checkpoint_that_was_there_leaves_the_quantize_part_empty(
    tmp_path: Path,
    evaluate_request: EvaluateRequest,
    evaluating: Callable[[Callable[[], Any]], list[_Evaluator]],
) -> None:
    evaluating(lambda: EVALUATED)
    EngineHost("transformers", 1).evaluate(evaluate_request)
    assert result_in(tmp_path).quantize is None


def test_a_host_opens_its_engine_once_and_survives_a_failed_cell(
    tmp_path: Path,
    evaluate_request: EvaluateRequest,
    evaluating: Callable[[Callable[[], Any]], list[_Evaluator]],
) -> None:
    outcomes: list[Callable[[], Any]] = [raising(errors.ParityError("apart")), lambda: EVALUATED]
    opened = evaluating(lambda: outcomes.pop(0)())
    host = EngineHost("transformers", 1)
    assert opened == []
    failure = host.evaluate(evaluate_request)
    assert failure is not None and (failure.stage, failure.kind) == ("evaluate", FailureKind.PARITY)
    (tmp_path / "result.json").unlink()
    assert host.evaluate(evaluate_request) is None
    host.close()
    assert [evaluator.closed for evaluator in opened] == [True]


def test_a_host_that_scored_nothing_has_nothing_to_close() -> None:
    EngineHost("vllm", 1).close()


# --- output ----------------------------------------------------------------------------------------------------------


def use_stdout_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's stdout as it is outside of pytest: a buffer before file descriptor 1."""
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115 (a descriptor)


@pytest.mark.parametrize("error", [None, errors.NumericalError("NaN")])
def test_what_a_stage_prints_goes_to_its_log_and_what_comes_after_does_not(
    tmp_path: Path,
    quantize_request: QuantizeRequest,
    quantizing: Callable[[Callable[[], Any]], None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
) -> None:
    def work() -> Manifest:
        print("from Python")
        os.write(1, b"from C\n")
        os.write(2, b"from C, as an error\n")
        logging.getLogger("workers.pipeline").info("block 1 of 2")
        if error is not None:
            raise error
        return MANIFEST

    quantizing(work)
    use_stdout_of_a_worker(monkeypatch)
    quantize_stage(dataclasses.replace(quantize_request, attempt_directory=str(tmp_path / "first")))  # starts a writer
    before = psutil.Process().num_fds()
    quantize_stage(quantize_request)
    os.write(1, b"afterwards\n")
    logging.getLogger("workers.pipeline").info("after the stage")
    assert capfd.readouterr().out == "afterwards\n"
    log = (tmp_path / "log.txt").read_text()
    assert all(line in log for line in ("from Python", "from C\n", "from C, as an error", "block 1 of 2"))
    assert "after the stage" not in log
    assert psutil.Process().num_fds() == before


def test_a_second_stage_adds_to_the_log_of_the_first(
    tmp_path: Path,
    quantize_request: QuantizeRequest,
    quantizing: Callable[[Callable[[], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["first", "second"]

    def work() -> Manifest:
        print(words.pop(0))
        return MANIFEST

    quantizing(work)
    use_stdout_of_a_worker(monkeypatch)
    quantize_stage(quantize_request)
    quantize_stage(quantize_request)
    log = (tmp_path / "log.txt").read_text()
    assert log.index("first") < log.index("second")


# --- storage that is full or gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_that_cannot_be_written_is_still_told_to_the_driver(
    tmp_path: Path,
    quantize_request: QuantizeRequest,
    quantizing: Callable[[Callable[[], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    def unwritable(path: Path, text: str) -> bool:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("workers.entry.create", unwritable)
    quantizing(raising(errors.NumericalError("NaN", layer="layers.3")))
    failure = quantize_stage(quantize_request)
    assert failure is not None and (failure.kind, failure.layer) == (FailureKind.NUMERICAL, "layers.3")
    assert f"result.json cannot be written: [Errno {code}]" in (tmp_path / "log.txt").read_text()


def test_a_storage_that_has_vanished_is_no_dead_worker(
    tmp_path: Path, quantize_request: QuantizeRequest, quantizing: Callable[[Callable[[], Any]], None]
) -> None:
    quantizing(raising(errors.NumericalError("NaN")))
    failure = quantize_stage(dataclasses.replace(quantize_request, attempt_directory=str(tmp_path / "vanished")))
    assert failure is not None and failure.kind is FailureKind.NUMERICAL


def test_a_gpu_s_failure_that_cannot_be_written_is_told_before_the_process_is_given_up(
    tmp_path: Path, evaluate_request: EvaluateRequest, evaluating: Callable[[Callable[[], Any]], list[_Evaluator]]
) -> None:
    evaluating(raising(RuntimeError("CUDA error: illegal address")))
    gone = dataclasses.replace(evaluate_request, attempt_directory=str(tmp_path / "vanished"))
    failure = EngineHost("transformers", 1).evaluate(gone)
    assert failure is not None and failure.kind is FailureKind.CUDA


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "hunter2-hunter2"


@pytest.fixture
def secret_file(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds SECRET for MY_SETTING, a variable whose name does not say so."""
    monkeypatch.setenv("MY_SETTING", "")  # so that what the stage sets goes after the test
    path = tmp_path_factory.mktemp("secrets") / "my_setting"
    path.write_text(f"{SECRET}\n")
    return path


def test_a_secret_file_is_in_the_environment_of_the_stage_and_nowhere_in_its_attempt(
    tmp_path: Path,
    quantize_request: QuantizeRequest,
    quantizing: Callable[[Callable[[], Any]], None],
    secret_file: Path,
) -> None:
    def work() -> None:
        assert os.environ["MY_SETTING"] == SECRET
        os.write(2, f"a library prints {SECRET}\n".encode())
        subprocess.run(["sh", "-c", "echo a child prints $MY_SETTING"], check=True)
        raise OSError(f"cannot log in with {SECRET}") from ValueError(f"{SECRET} was refused")

    quantizing(work)
    failure = quantize_stage(dataclasses.replace(quantize_request, secrets={"MY_SETTING": str(secret_file)}))
    assert failure is not None and "cannot log in with ***" in failure.message
    assert failure.traceback is not None and "*** was refused" in failure.traceback
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(written) == {"log.txt", "result.json"}
    assert not [name for name, text in written.items() if SECRET in text]
    assert "a library prints ***" in written["log.txt"] and "a child prints ***" in written["log.txt"]


def test_a_secret_file_that_is_not_there_fails_the_cell_and_says_where_it_should_be(
    tmp_path: Path, quantize_request: QuantizeRequest, quantizing: Callable[[Callable[[], Any]], None]
) -> None:
    quantizing(lambda: pytest.fail("the stage has started"))
    gone = tmp_path / "gone"
    failure = quantize_stage(dataclasses.replace(quantize_request, secrets={"HF_TOKEN": str(gone)}))
    assert failure is not None and failure.kind is FailureKind.PREREQUISITE
    for words in ("cluster.secrets.HF_TOKEN", str(gone), os.uname().nodename, "put the file"):
        assert words in failure.message
    assert result_in(tmp_path).failure == failure
