"""A real Ray cluster of three nodes on this machine, with GPUs that are only counted: a gang among small cells."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.e2e.command_line import ROOT
from tests.soak.ray_cluster import RAY_ENVIRONMENT, NodeSize, RayCluster

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    sizes = [NodeSize(num_gpus=4, num_cpus=1), NodeSize(num_gpus=2, num_cpus=1), NodeSize(num_gpus=2, num_cpus=1)]
    with RayCluster(tmp_path_factory.mktemp("nodes"), sizes) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def evaluations(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Where and when each cell was scored; the gang's is the one with four GPUs."""
    directory = tmp_path_factory.mktemp("gang")
    script = ROOT / "tests" / "e2e" / "stand_in_stages.py"
    driven = subprocess.run(
        [sys.executable, str(script), cluster.address, str(directory)],
        cwd=directory,
        env=RAY_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert driven.returncode == 0, driven.stdout + driven.stderr
    return [json.loads(line) for line in (directory / "evaluations").read_text().splitlines()]


def together(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["began"] < other["ended"] and other["began"] < one["ended"])


def test_a_cell_that_needs_four_gpus_gets_four_of_one_node(evaluations: list[dict[str, Any]]) -> None:
    (gang,) = [entry for entry in evaluations if entry["role"] == "gang"]
    assert gang["tensor_parallel_size"] == 4 and sorted(gang["gpus"]) == ["0", "1", "2", "3"]
    before = [entry for entry in evaluations if entry["node"] == gang["node"] and entry["ended"] <= gang["began"]]
    assert sorted(gpu for entry in before for gpu in entry["gpus"]) == gang["gpus"]  # it was cleared for the gang


def test_small_cells_fill_the_other_nodes_meanwhile(evaluations: list[dict[str, Any]]) -> None:
    (gang,) = [entry for entry in evaluations if entry["role"] == "gang"]
    late = [entry for entry in evaluations if entry["role"] == "late"]
    assert len(late) == 4 and all(together(entry, gang) for entry in late)
    assert gang["node"] not in {entry["node"] for entry in late}


def test_no_gpu_is_given_to_two_at_once(evaluations: list[dict[str, Any]]) -> None:
    assert len({entry["node"] for entry in evaluations}) == 3
    for one, other in combinations(evaluations, 2):
        if one["node"] == other["node"] and together(one, other):
            assert not set(one["gpus"]) & set(other["gpus"]), (one, other)
