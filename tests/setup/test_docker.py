"""No Docker engine is at hand: what the files in docker/ name must exist, and what they ask for be understood."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.admission import pins

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
LANES = ("cpu", "cuda")
LOOPBACK = "127.0.0.1:"
SECRET_WORDS = ("PASSWORD", "SECRET", "TOKEN", "KEY")

COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
CUDA: dict[str, Any] = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# Of the Compose specification, what these files use.
SERVICE_KEYS = {
    *("build", "command", "depends_on", "environment", "gpus", "healthcheck", "image", "init", "ports", "restart"),
    *("scale", "shm_size", "volumes"),
}
CLUSTER = yaml.safe_load((DOCKER / "ray-cluster.yaml").read_text())


# --- images ----------------------------------------------------------------------------------------------------------


def test_there_is_an_image_for_each_lane_and_one_for_mlflow() -> None:
    assert [path.stem for path in DOCKERFILES] == [*LANES, "mlflow"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_what_an_image_copies_and_makes_exists(path: Path) -> None:
    text = path.read_text()
    sources = [words.split()[0] for words in re.findall(r"^COPY (?:--\S+ )*(.+)$", text, re.MULTILINE)]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^RUN .*\bmake (\w+)$", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("lane", LANES)
def test_a_lane_s_image_installs_that_lane(lane: str) -> None:
    assert f"RUN PTQ_BENCH_LANE={lane} make setup\n" in (DOCKER / f"{lane}.Dockerfile").read_text()
    assert (ROOT / "locks" / f"{lane}.txt").exists()


def test_all_images_have_one_python_and_it_is_the_project_s() -> None:
    """To the last digit: Ray refuses a node whose Python differs there."""
    (base,) = {match for path in DOCKERFILES for match in re.findall(r"^FROM (.+)$", path.read_text(), re.MULTILINE)}
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) and required == "==3.11.*"


def test_the_lane_images_differ_in_their_lane_alone() -> None:
    cpu, cuda = ((DOCKER / f"{lane}.Dockerfile").read_text().split("\n\n", 1)[1] for lane in LANES)
    assert cpu.replace("ARG PTQ_BENCH_TORCH_INDEX=\n", "").replace("LANE=cpu", "LANE=cuda") == cuda


def test_all_that_mlflow_s_image_installs_is_pinned_by_the_lock() -> None:
    text = (DOCKER / "mlflow.Dockerfile").read_text()
    wanted = re.search(r"--constraint \S+ ([\w -]+?) *\\?$", text, re.MULTILINE)
    assert wanted is not None
    pinned = {canonicalize_name(name) for name in pins((ROOT / "locks" / "common.txt").read_text())}
    assert _with_requirements(wanted[1].split()) - pinned == set()


def _with_requirements(names: list[str]) -> set[str]:
    """Distributions and all they require on this platform, as the installed ones say."""
    environment = {key: str(value) for key, value in default_environment().items()} | {"extra": ""}
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found.add(name)
            required = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            names += [each.name for each in required if each.marker is None or each.marker.evaluate(environment)]
    return found


def test_git_and_the_images_leave_the_secrets_file_out_and_the_commit_in() -> None:
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert "docker/.env" in left_out and ".git" not in left_out  # a sweep records the commit it ran
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


# --- compose ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "top"), [(COMPOSE, {"name", "services", "volumes", "x-ray"}), (CUDA, {"services"})])
def test_compose_files_have_known_keys(file: dict[str, Any], top: set[str]) -> None:
    assert file.keys() == top
    for name, service in file["services"].items():
        assert service.keys() <= SERVICE_KEYS, name
        assert name in SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_built_from_a_file_here_or_pinned_by_version(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        assert re.fullmatch(r"[\w/.-]+:v?\d+(\.\d+)+(-\w+)?", service["image"])
        return
    for lane in LANES:
        dockerfile = ROOT / service["build"]["dockerfile"].replace("${PTQ_BENCH_LANE:-cpu}", lane)
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT and dockerfile in DOCKERFILES


def test_ports_are_published_on_loopback_and_only_those_a_person_looks_at() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"head", "mlflow"}
    assert all(port.startswith(LOOPBACK) for ports in published.values() for port in ports)


def test_no_secret_is_written_down_or_has_a_default() -> None:
    found = {
        name: value
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if any(word in name for word in SECRET_WORDS)
    }
    assert len(found) >= 6
    for name, value in found.items():
        assert re.fullmatch(r"\$\{(\w+):\?[^}]+\}", value), name


def test_the_page_s_command_writes_every_secret_that_is_asked_for() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text()))
    written = re.search(r"for name in ([A-Z0-9_ ]+);", (DOCKER / "README.md").read_text())
    assert written is not None and set(written[1].split()) == asked


def test_what_is_waited_for_says_when_it_is_ready() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_healthy" if "healthcheck" in SERVICES[other] else "service_completed_successfully"
            assert how == {"condition": expected}, (name, other)
    assert {"head", "mlflow", "postgres", "s3"} <= {n for n, service in SERVICES.items() if "healthcheck" in service}


def test_volumes_are_declared_and_the_shared_one_has_one_path() -> None:
    mounts = {name: dict(m.split(":")[:2] for m in service.get("volumes", [])) for name, service in SERVICES.items()}
    named = {volume for mounted in mounts.values() for volume in mounted if "/" not in volume}
    assert named == COMPOSE["volumes"].keys()
    assert all((DOCKER / path).exists() for mounted in mounts.values() for path in mounted if "/" in path)
    (shared,) = {mounts[name]["shared"] for name in ("head", "worker")}
    assert f"install --directory --owner=ptqbench /opt/ptq-bench {shared}\n" in (DOCKER / "cpu.Dockerfile").read_text()
    assert f"cluster.storage={shared}/storage" in (DOCKER / "README.md").read_text()


def test_head_and_workers_share_a_token() -> None:
    for name in ("head", "worker"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
    head, worker = SERVICES["head"]["command"], SERVICES["worker"]["command"]
    (port,) = [word.removeprefix("--port=") for word in head if word.startswith("--port=")]
    assert (
        f"--address=head:{port}" in worker and f"--address=127.0.0.1:{port}" in SERVICES["head"]["healthcheck"]["test"]
    )


# --- what the programs understand ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own, on import
def test_options_of_ray_are_those_ray_has() -> None:
    from ray.scripts import scripts

    commands = [SERVICES["head"]["command"], SERVICES["worker"]["command"], CUDA["services"]["head"]["command"]]
    commands += [line.split() for kind in ("head", "worker") for line in CLUSTER[f"{kind}_start_ray_commands"]]
    started = [words for words in commands if words[1] == "start"]
    assert len(started) == 5
    for words in started:
        assert _options(words) <= _known(scripts.start), words
    assert _options(SERVICES["head"]["healthcheck"]["test"]) <= _known(scripts.healthcheck)
    page = (DOCKER / "README.md").read_text()
    for line in re.findall(r"\.venv/bin/ray (start .*?)(?: #|$)", page, re.MULTILINE):
        assert _options(line.split()) <= _known(scripts.start), line
    for command in set(re.findall(r"(?:bin/|^ +|`)ray ([a-z-]+)", page, re.MULTILINE)):
        assert command in scripts.cli.commands, command


def test_options_and_variables_of_mlflow_are_those_mlflow_has() -> None:
    from mlflow import environment_variables
    from mlflow.cli import cli

    service = SERVICES["mlflow"]
    assert service["command"][:2] == ["mlflow", "server"]
    assert _options(service["command"]) <= _known(cli.commands["server"])
    for name in service["environment"]:
        assert not name.startswith("MLFLOW_") or hasattr(environment_variables, name), name


def test_mlflow_s_server_can_speak_to_its_database_and_its_store() -> None:
    """The drivers that the two addresses stand for are installed, at least here; the image has the same pins."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from sqlalchemy import create_engine

    given = dict(word.split("=", 1) for word in SERVICES["mlflow"]["command"][2:])
    engine = create_engine(given["--backend-store-uri"])
    assert engine.url.host in SERVICES and engine.url.username == SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    assert engine.url.database == SERVICES["postgres"]["environment"]["POSTGRES_DB"]
    assert type(get_artifact_repository(given["--artifacts-destination"])).__name__ == "S3ArtifactRepository"
    assert given["--artifacts-destination"].split("/")[2] == SERVICES["bucket"]["command"][-1]


def test_mlflow_answers_under_the_name_by_which_it_is_called() -> None:
    """Its server refuses requests for a host that is not listed."""
    given = dict(word.split("=", 1) for word in SERVICES["mlflow"]["command"][2:])
    (called,) = set(re.findall(r"tracking\.uri=http://(mlflow:\d+)", (DOCKER / "README.md").read_text()))
    (published,) = SERVICES["mlflow"]["ports"]
    assert published == f"{LOOPBACK}{given['--port']}:{given['--port']}"
    assert {called, f"{LOOPBACK}{given['--port']}"} <= set(given["--allowed-hosts"].split(","))


def test_the_cluster_file_is_one_that_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    assert prepared["head_start_ray_commands"] == CLUSTER["head_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][1]
    assert "--env=RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]


def test_the_page_s_overrides_are_understood() -> None:
    from orchestrator.sweep import expand

    page = (DOCKER / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"(?:ARGS=\"|ptqbench sweep +)([^\"'\n]+)", page)
    assert len(lines) >= 4
    executions = {tuple(w for w in line.split() if w.startswith(("cluster", "tracking"))) for line in lines}
    for execution in executions:
        assert expand(["experiment=smoke", *execution]).cluster.address == "auto"


def _options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def _known(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
