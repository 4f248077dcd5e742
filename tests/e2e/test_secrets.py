"""Planted secrets: printed, logged, raised and passed to children in a real sweep, and then looked for everywhere."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command_line import ENVIRONMENT, cells, ptqbench, runs, write_tokens
from tests.workers.local_task import write_task
from tests.workers.tiny_requests import write_llama
from workers.api import AttemptResult, from_json

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

TOKEN = "hf_" + "plantedTOKEN0123" * 2  # in the driver's environment
PASSWORD = "planted-password-4711"
FROM_FILE = "planted/in=a file"  # in a variable whose name does not say so

# Code of a benchmark task, which runs in the engine's process.
LEAK = """
import logging, os, subprocess

def process_docs(docs):
    words = " ".join(os.environ[name] for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MY_SETTING"))
    print("printed", words, flush=True)
    os.write(2, f"written {words}\\n".encode())
    logging.getLogger("workers.harness").warning("logged %s", words)
    subprocess.run(["sh", "-c", "echo by a child $HF_TOKEN $MLFLOW_TRACKING_PASSWORD $MY_SETTING"], check=True)
    raise ValueError(f"refused {words} at https://user:{words.split()[1]}@host/") from OSError(words)
"""


@pytest.fixture
def ray_directory() -> Iterator[Path]:
    """Where Ray keeps the logs of this test; its sockets lie there too, and their paths must be short."""
    directory = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_a_planted_secret_is_in_no_result_no_log_and_nothing_that_mlflow_or_ray_keeps(
    tmp_path: Path, ray_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_task(tasks, "leaking", [{"query": "t1 t2", "choices": ["t3", "t4"], "gold": 0}] * 4)
    with (tasks / "leaking.yaml").open("a") as file:
        file.write("process_docs: !function leak.process_docs\n")
    (tasks / "leak.py").write_text(LEAK)
    (tmp_path / "my_setting").write_text(f"{FROM_FILE}\n")
    environment = {"HF_TOKEN": TOKEN, "MLFLOW_TRACKING_PASSWORD": PASSWORD, "RAY_TMPDIR": str(ray_directory)}
    monkeypatch.setattr("tests.e2e.command_line.ENVIRONMENT", ENVIRONMENT | environment)
    model = write_llama(tmp_path / "model")
    swept = ptqbench(
        tmp_path,
        "sweep",
        "name=leaking",
        "model=hf",
        f"model.repo={model}",
        "method=rtn",
        "bits=3",
        *write_tokens(tmp_path),
        f"suite.task_path={tasks}",
        "suite.tasks=[leaking]",
        f"cluster.secrets.MY_SETTING={tmp_path / 'my_setting'}",
        timeout=560,
    )
    assert swept.returncode == 1, swept.stdout + swept.stderr

    (attempt,) = (tmp_path / "results" / "storage" / "attempts").iterdir()
    log = (attempt / "log.txt").read_text()
    assert all(f"{way} *** *** ***" in log for way in ("printed", "written", "logged", "by a child")), log
    failure = from_json(AttemptResult, (attempt / "result.json").read_text()).failure
    assert failure is not None and "refused *** *** *** at https://***@host/" in failure.message
    assert cells(tmp_path, "leaking").failure_message.tolist() == [failure.message]
    assert [run.data.tags["ptqbench.failure_message"] for run in runs(tmp_path)] == [failure.message]

    shown = [text for text in (TOKEN, PASSWORD, FROM_FILE) if text in swept.stdout + swept.stderr]
    files = [path for root in (tmp_path / "results", ray_directory) for path in root.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "mlflow.db"] and [path for path in files if "worker-" in path.name]
    found = [str(path) for path in files if any(s.encode() in path.read_bytes() for s in (TOKEN, PASSWORD, FROM_FILE))]
    assert (shown, found) == ([], [])
