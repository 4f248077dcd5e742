"""The log of a stage with its writer as a process: what is kept when workers, children, writers and disks die."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from workers import attempt_log as module
from workers.attempt_log import LogWriter, attempt_log
from workers.log_writer import STAGE_BYTES

REPOSITORY = Path(__file__).parents[2]
SECRET = "hunter2-hunter2"


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], psutil.Process]]:
    """A writer of this test's own; the function finds its process."""
    monkeypatch.setattr(module, "_writer", None)
    before = set(psutil.Process().children())

    def process() -> psutil.Process:
        (found,) = set(psutil.Process().children()) - before
        return found

    yield process
    for child in set(psutil.Process().children()) - before:
        child.kill()


def worker(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that has `attempt_log`."""
    head = "import os, signal, subprocess, sys\nfrom pathlib import Path\nfrom workers.attempt_log import attempt_log\n"
    return subprocess.run(
        [sys.executable, "-c", head + program, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def wait_for(text: str, path: Path) -> str:
    """What is in a file once it holds `text`: a writer lives a moment longer than its worker."""
    deadline = time.monotonic() + 30
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text() if path.exists() else "no file"
        time.sleep(0.02)
    return path.read_text()


def test_all_that_is_printed_and_logged_is_in_the_file_once_the_stage_is_over(
    tmp_path: Path, writer: Callable[[], psutil.Process]
) -> None:
    with attempt_log(tmp_path / "log.txt", capture_output=True):
        for i in range(20_000):
            os.write(1 + i % 2, b"%d\n" % i)
        logging.getLogger("workers.pipeline").info("block 1 of 2")
        subprocess.run(["echo", "from a child"], check=True)
        os.write(2, b"no end of line")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[:20_000] == [str(i) for i in range(20_000)]
    assert "INFO workers.pipeline: block 1 of 2" in lines[20_000]
    assert lines[20_001:] == ["from a child", "no end of line"]


def test_secrets_of_the_environment_and_those_named_later_are_masked_and_given_to_no_one(
    tmp_path: Path, writer: Callable[[], psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", SECRET)
    with attempt_log(tmp_path / "log.txt", capture_output=True) as log:
        os.write(1, f"first {SECRET}\n".encode())
        log.hide([SECRET, "and-another-one"])
        logging.getLogger("workers").warning("second %s and-another-one", SECRET)
        assert SECRET not in " ".join(writer().cmdline()) + str(writer().environ())
    text = (tmp_path / "log.txt").read_text()
    assert "first ***\n" in text and "second *** ***\n" in text


def test_without_capture_log_records_are_kept_and_prints_are_not(
    tmp_path: Path, writer: Callable[[], psutil.Process], capfd: pytest.CaptureFixture[str]
) -> None:
    with attempt_log(tmp_path / "log.txt", capture_output=False):
        os.write(1, b"to the terminal\n")
        logging.getLogger("workers").info("to the log")
    assert capfd.readouterr().out == "to the terminal\n"
    assert "to the log" in (tmp_path / "log.txt").read_text()


def test_one_writer_serves_all_stages_of_a_process_and_leaks_nothing(
    tmp_path: Path, writer: Callable[[], psutil.Process]
) -> None:
    with attempt_log(tmp_path / "0.txt", capture_output=True):
        os.write(1, b"0\n")
        first = writer()
    before = psutil.Process().num_fds(), first.num_fds()
    for i in range(1, 5):
        with attempt_log(tmp_path / f"{i}.txt", capture_output=True):
            os.write(1, b"%d\n" % i)
    assert writer() == first
    assert (psutil.Process().num_fds(), first.num_fds()) == before
    assert [(tmp_path / f"{i}.txt").read_text() for i in range(1, 5)] == ["1\n", "2\n", "3\n", "4\n"]


def test_a_child_that_outlives_its_cell_prints_into_the_log_of_the_cell_at_work(
    tmp_path: Path, writer: Callable[[], psutil.Process]
) -> None:
    """As the processes of an engine do, which start in the first cell and serve the others."""
    program = "import sys\nfor line in sys.stdin: print('engine:', line, end='', flush=True)"
    with attempt_log(tmp_path / "1.txt", capture_output=True):
        engine = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True)
    assert engine.stdin is not None
    for name in ("1.txt", "2.txt"):
        with attempt_log(tmp_path / name, capture_output=True):
            engine.stdin.write(f"scoring for {name}\n")
            engine.stdin.flush()
            assert wait_for(name, tmp_path / name) == f"engine: scoring for {name}\n"
    engine.stdin.close()
    assert engine.wait(timeout=30) == 0


def test_what_comes_without_end_is_bounded(tmp_path: Path, writer: Callable[[], psutil.Process]) -> None:
    with attempt_log(tmp_path / "log.txt", capture_output=True):
        os.write(1, b"first\n")
        for _ in range(2 * STAGE_BYTES // 64000):
            os.write(1, b"x" * 63999 + b"\n")
        os.write(1, b"last\n")
    text = (tmp_path / "log.txt").read_bytes()
    assert text.startswith(b"first\n") and text.endswith(b"last\n") and b"are left out here]" in text
    assert len(text) <= STAGE_BYTES


# --- deaths ----------------------------------------------------------------------------------------------------------

DIE = """
with attempt_log(Path(sys.argv[1]), capture_output=True):
    os.write(1, b"before the end, hunter2-hunter2")
    {death}
"""


@pytest.mark.parametrize(
    ("death", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("os.abort()", -signal.SIGABRT, ""),
        ("import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", -signal.SIGSEGV, "Segmentation fault"),
    ],
)
def test_the_last_words_of_a_worker_that_dies_are_kept(tmp_path: Path, death: str, code: int, words: str) -> None:
    dead = worker(DIE.format(death=death), str(tmp_path / "log.txt"), A_TOKEN=SECRET)
    assert dead.returncode == code
    text = wait_for(words or "***", tmp_path / "log.txt")
    assert "before the end, ***" in text and SECRET not in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_writer_that_dies_or_hangs_neither_ends_nor_holds_up_the_stage(
    tmp_path: Path, writer: Callable[[], psutil.Process], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    with attempt_log(tmp_path / "log.txt", capture_output=True):
        os.write(1, b"before\n")
        wait_for("before", tmp_path / "log.txt")
        first = writer()
        first.send_signal(number)
        child = subprocess.run(["head", "-c", "60000", "/dev/zero"], check=False)
        if number == signal.SIGKILL:  # many times what a pipe holds
            for _ in range(100):
                os.write(1, b"x" * 10_000)
    assert child.returncode == 0
    assert "some of this stage's output is missing" in (tmp_path / "log.txt").read_text()
    with attempt_log(tmp_path / "next.txt", capture_output=True):
        os.write(1, b"the next stage has a writer again\n")
    assert (tmp_path / "next.txt").read_text() == "the next stage has a writer again\n"


def test_a_line_without_end_does_not_wait_for_ever(tmp_path: Path, writer: Callable[[], psutil.Process]) -> None:
    with attempt_log(tmp_path / "log.txt", capture_output=True):
        os.write(1, b"half a line")
        assert wait_for("half a line", tmp_path / "log.txt") == "half a line"


def test_a_writer_ends_with_the_last_of_those_who_print(tmp_path: Path) -> None:
    program = """
with attempt_log(Path(sys.argv[1]), capture_output=True):
    child = subprocess.Popen(["sleep", "0.2"])
    import psutil
    print(*(process.pid for process in psutil.Process().children()), flush=True)
"""
    assert worker(program, str(tmp_path / "log.txt")).returncode == 0
    pids = [int(pid) for pid in (tmp_path / "log.txt").read_text().split()]
    assert len(pids) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    assert not alive


def test_a_log_that_cannot_be_written_is_no_error(tmp_path: Path, writer: Callable[[], psutil.Process]) -> None:
    with attempt_log(tmp_path / "gone" / "log.txt", capture_output=True):
        os.write(1, b"x" * 1_000_000)


def test_the_writer_has_no_part_in_a_ctrl_c(writer: Callable[[], psutil.Process]) -> None:
    LogWriter()
    assert os.getsid(writer().pid) != os.getsid(0)
