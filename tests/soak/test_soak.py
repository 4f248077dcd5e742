"""The soak in short: one sweep that loses a worker, an engine, its own node, another, and its driver with MLflow."""

from pathlib import Path

import pytest

from tests.e2e.servers import Server
from tests.soak.ray_cluster import RayCluster
from tests.soak.rounds import Arena, Kill, play, undisturbed
from tests.soak.sweep import NODE_SIZES, on_cluster, write_inputs

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

# The head's raylet early: a driver that has nothing left to do there ends well without it.
KINDS = {"worker": 0.1, "engine host": 0.1, "head's raylet": 0.1, "raylet": 0.2, "driver + mlflow": 0.4}


def test_a_sweep_that_loses_one_process_after_another_loses_no_cell_and_repeats_none(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        with RayCluster(tmp_path, NODE_SIZES) as cluster:
            grid = ("method=none,rtn,gptq", "bits=3,4")
            arena = Arena(tmp_path, [*write_inputs(tmp_path, grid), *on_cluster(cluster)], cluster, server)
            peace, _ = undisturbed(arena)
            played = play(arena, 0, [Kill(kind, after, 0.0) for kind, after in KINDS.items()], 0, peace)
    finally:
        server.stop()
    said = (tmp_path / "round-0" / "driver.log").read_text()
    assert played.hits == list(KINDS), said
    assert not played.ledger.problems, said
    assert (played.ledger.lost, played.ledger.doubled, played.ledger.running) == (0, 0, 0)
    assert played.ledger.ends["WORKER_LOST"] >= 3
    assert "missing: the Ray node that this driver is connected to went down" in said
