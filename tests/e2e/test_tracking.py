"""An MLflow server that goes away: at the start it is a prerequisite, in the middle the sweep goes on without it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.e2e.command_line import ENVIRONMENT, cells, command, ptqbench, write_tokens
from tests.workers.tiny_requests import write_llama

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


class Server:
    """MLflow on loopback, with its tables in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self._directory / 'server.db'}"
        options = ["--backend-store-uri", store, "--artifacts-destination", str(self._directory / "files")]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        log = (self._directory / "server.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, *address],
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self._directory / "server.log").read_text())

    def stop(self) -> None:
        """With its own children: it starts a process for its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def test_a_server_that_dies_in_the_middle_costs_no_results_and_is_made_up_for_by_sync(tmp_path: Path) -> None:
    server = Server(tmp_path)
    model = write_llama(tmp_path / "model")
    sweep = ["name=tracked", "model=hf", f"model.repo={model}", "method=rtn", "bits=2,3,4", *write_tokens(tmp_path)]
    tracking = ["tracking=server", f"tracking.uri={server.uri}"]
    refused = ptqbench(tmp_path, "sweep", *sweep, *tracking)
    assert refused.returncode == 3 and f"MLflow does not answer at {server.uri}" in refused.stderr
    try:
        server.start()
        driver = subprocess.Popen(
            command("sweep", *sweep, *tracking), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        attempts = tmp_path / "results" / "storage" / "attempts"
        while driver.poll() is None and not list(attempts.glob("*/result.json")):
            time.sleep(0.05)
        server.stop()
        output, _ = driver.communicate(timeout=400)
        assert driver.returncode == 1
        assert "MLflow has stopped answering" in output and "make sync ARGS='name=tracked'" in output
        assert set(cells(tmp_path, "tracked").status) == {"SUCCEEDED"}

        server.start()
        assert ptqbench(tmp_path, "sync", "name=tracked").returncode == 0
        mlflow = MlflowClient(server.uri)
        experiment = mlflow.get_experiment_by_name("ptq-bench")
        assert experiment is not None
        runs = mlflow.search_runs([experiment.experiment_id])
        assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4
        assert set(cells(tmp_path, "tracked").mlflow_run_id) < {run.info.run_id for run in runs}
        again = ptqbench(tmp_path, "sweep", "name=tracked")
        assert again.returncode == 0 and "nothing to run" in again.stdout
    finally:
        server.stop()
