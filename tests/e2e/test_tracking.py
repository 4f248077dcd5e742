"""An MLflow server that goes away: at the start it is a prerequisite, in the middle the sweep goes on without it. Its
tables may be PostgreSQL's.
"""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conf.schema import TrackingConf
from tests.e2e.command_line import ENVIRONMENT, cells, command, ptqbench, write_tokens
from tests.e2e.servers import Server, initdb, postgresql
from tests.orchestrator.tracked_sweep import Sweep
from tests.workers.tiny_requests import write_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.ray
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


def test_a_server_on_postgresql_that_keeps_the_artifacts_is_restored_by_sync(tmp_path: Path) -> None:
    programs = initdb()
    if programs is None:
        pytest.skip("no PostgreSQL here: neither initdb on the path nor /usr/lib/postgresql/*/bin/initdb")
    with postgresql(programs.parent) as address:
        server = Server(tmp_path, address)
        try:
            server.start()
            sweep = Sweep(tmp_path / "results", conf=TrackingConf(name="server", uri=server.uri))
            sweep.run()
            before = sweep.view()
            assert len(before) == 5 and all(shown["artifacts"] for shown in before.values())
            assert not (tmp_path / "results" / "mlflow").exists()

            sweep.client.delete_run(sweep.runs("sweep")[0].info.run_id)
            next(server.artifacts.rglob("traceback.txt")).unlink()
            sweep.sync()
            assert sweep.view() == before

            sweep.client.delete_experiment(sweep.experiment)
            shutil.rmtree(server.artifacts)
            sweep.sync()
            assert sweep.view() == before
        finally:
            server.stop()
