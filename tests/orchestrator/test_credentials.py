"""Secrets on the driver: never in a configuration, from files where they are, and asked of every node beforehand."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError
from conf.schema import ClusterConf
from orchestrator import resolve as resolving
from orchestrator import scheduler
from orchestrator.admission import Terms, refusals, survey
from orchestrator.sweep import expand
from workers.errors import PrerequisiteError

TOKEN = "hf_" + "aB3dE6gH9j" * 3


@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=http://user:hunter2-hunter2@host:5000",
        "tracking.uri=postgresql://mlflow:hunter2-hunter2@db/mlflow",
        "cluster.address=ray://user:hunter2-hunter2@head:10001",
        f"model.repo={TOKEN}",
        "calibration.path='https://host/text?token=hunter2-hunter2'",
    ],
)
def test_a_configuration_with_a_password_or_token_is_refused_without_repeating_it(override: str) -> None:
    with pytest.raises(ConfigError, match=r"\*\*\*.*MLFLOW_TRACKING_PASSWORD.*cluster\.secrets\.HF_TOKEN=") as refused:
        expand(["experiment=smoke", override])
    assert "hunter2" not in str(refused.value) and TOKEN not in str(refused.value)


def test_a_server_without_a_password_in_its_address_is_fine() -> None:
    assert expand(["experiment=smoke", "tracking.uri=http://127.0.0.1:5000"]).tracking.uri == "http://127.0.0.1:5000"


def test_secrets_are_names_and_paths() -> None:
    sweep = expand(["experiment=smoke", "cluster.secrets.HF_TOKEN=/run/secrets/hf", "cluster.secrets.MINE=/x"])
    assert sweep.cluster.secrets == {"HF_TOKEN": "/run/secrets/hf", "MINE": "/x"}


def test_a_secret_s_value_in_the_place_of_its_path_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match="absolute path of a file") as refused:
        expand(["experiment=smoke", "cluster.secrets.HF_TOKEN=hunter2-hunter2"])
    assert "hunter2" not in str(refused.value)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MY_SETTING", "")
    path = tmp_path / "my_setting"
    path.write_text("hunter2-hunter2\n")
    return path


def cluster(secrets: dict[str, str], **values: Any) -> ClusterConf:
    return ClusterConf(name="local", secrets=secrets, **values)


def test_the_driver_asks_the_hub_with_the_secrets_of_its_machine(secret: Path) -> None:
    resolving._take_secrets(cluster({"MY_SETTING": str(secret)}))
    assert os.environ["MY_SETTING"] == "hunter2-hunter2"


def test_without_the_file_a_sweep_on_this_machine_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match=r"cluster\.secrets\.HF_TOKEN: .*No such file"):
        resolving._take_secrets(cluster({"HF_TOKEN": str(tmp_path / "gone")}))


def test_the_driver_of_a_cluster_elsewhere_needs_no_file(tmp_path: Path) -> None:
    resolving._take_secrets(cluster({"HF_TOKEN": str(tmp_path / "gone")}, address="head:6379"))


def test_a_node_without_the_file_is_refused_and_says_which(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "leases").mkdir()
    terms = Terms(tmp_path, (), {}, {"MY_SETTING": str(secret)})
    assert refusals(terms, survey(terms, "node"), "node") == []
    (tmp_path / "empty").touch()
    terms = replace(terms, secrets={"A": str(tmp_path / "gone"), "B": str(tmp_path / "empty")})
    gone, empty = refusals(terms, survey(terms, "node"), "node")
    assert str(tmp_path / "gone") in gone and "No such file" in gone and os.uname().nodename in gone
    assert str(tmp_path / "empty") in empty and "it is empty" in empty


def test_what_ray_says_of_a_dead_worker_repeats_no_secret(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SETTING", "hunter2-hunter2")
    pending = scheduler._Pending("key", None, tmp_path)
    error = RuntimeError(f"worker exited: cannot log in with hunter2-hunter2 and {TOKEN}")
    failure = scheduler._failure_of_lost_worker(pending, error, cluster({"MY_SETTING": str(secret)}))
    assert failure.message == "the worker process died: worker exited: cannot log in with *** and ***"
