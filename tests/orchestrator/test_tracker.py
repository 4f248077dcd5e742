"""MLflow is a view: whatever was lost of it, the same attempts give the same view again."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from orchestrator import run_page
from orchestrator.tracker import Tracker, create_database, tracking_uri
from tests.orchestrator.hand_made import make_cell, with_bits
from tests.orchestrator.tracked_sweep import LOCAL, NUMERICAL, Sweep
from workers.errors import PrerequisiteError

ROOT = Path(__file__).parents[2]
Disturb = Callable[[Sweep], None]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(path)
    return path


def swept(results: Path, empty_database: Path) -> Sweep:
    (results / "mlflow").mkdir(parents=True)
    shutil.copy(empty_database, results / "mlflow" / "mlflow.db")
    sweep = Sweep(results)
    sweep.run()
    return sweep


@pytest.fixture
def sweep(tmp_path: Path, empty_database: Path) -> Sweep:
    return swept(tmp_path, empty_database)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Sweep, dict[str, Any]]:
    """A sweep and its view, for tests that put right what they disturb."""
    sweep = swept(tmp_path_factory.mktemp("results"), empty_database)
    before = sweep.view()
    assert len(before) == 5 and all(shown["artifacts"] for shown in before.values())
    return sweep, before


def the_database(sweep: Sweep) -> None:
    (sweep.results / "mlflow" / "mlflow.db").unlink()
    SqlAlchemyStore._engine_map[tracking_uri(LOCAL, sweep.results)].dispose()


def the_artifacts(sweep: Sweep) -> None:
    shutil.rmtree(sweep.results / "mlflow" / "artifacts")


def one_artifact(sweep: Sweep) -> None:
    next((sweep.results / "mlflow" / "artifacts").rglob("traceback.txt")).unlink()


def half_of_an_artifact(sweep: Sweep) -> None:
    path = next((sweep.results / "mlflow" / "artifacts").rglob("layers.json"))
    path.write_bytes(path.read_bytes()[:10])


def the_experiment(sweep: Sweep) -> None:
    sweep.client.delete_experiment(sweep.experiment)


def an_attempt(sweep: Sweep) -> None:
    sweep.client.delete_run(sweep.runs()[0].info.run_id)


def the_sweep_s_run(sweep: Sweep) -> None:
    sweep.client.delete_run(sweep.runs("sweep")[0].info.run_id)


def the_sweep_s_run_and_its_attempts(sweep: Sweep) -> None:
    for run in [*sweep.runs("sweep"), *sweep.runs()]:
        sweep.client.delete_run(run.info.run_id)


def the_rest_of_an_attempt(sweep: Sweep) -> None:
    """What a killed driver leaves: a run with its tags and a parameter, not ended."""
    run = sweep.runs()[0]
    sweep.client.delete_run(run.info.run_id)
    half = sweep.client.create_run(sweep.experiment, tags=run.data.tags)
    sweep.client.log_param(half.info.run_id, "model", "tiny")


def a_deletion_by_restoring_it_beside_its_successor(sweep: Sweep) -> None:
    deleted = [sweep.runs()[0], sweep.runs("sweep")[0]]
    for run in deleted:
        sweep.client.delete_run(run.info.run_id)
    sweep.sync()
    for run in deleted:
        sweep.client.restore_run(run.info.run_id)


LOSSES: list[Disturb] = [
    the_database,
    the_artifacts,
    one_artifact,
    half_of_an_artifact,
    the_experiment,
    an_attempt,
    the_sweep_s_run,
    the_sweep_s_run_and_its_attempts,
    the_rest_of_an_attempt,
    a_deletion_by_restoring_it_beside_its_successor,
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_sync_makes_up_for_the_loss_of(loss: Disturb, undisturbed: tuple[Sweep, dict[str, Any]]) -> None:
    sweep, before = undisturbed
    loss(sweep)
    if loss is not the_database:  # there is nothing to look at
        assert sweep.view() != before
    sweep.sync()
    assert sweep.view() == before


def test_a_second_sync_writes_nothing(sweep: Sweep) -> None:
    before = {run.info.run_id: run.to_dictionary() for run in sweep.runs()}
    files = {path: path.stat().st_mtime_ns for path in (sweep.results / "mlflow" / "artifacts").rglob("layers.json")}
    sweep.sync()
    assert {run.info.run_id: run.to_dictionary() for run in sweep.runs()} == before
    assert all(path.stat().st_mtime_ns == written for path, written in files.items())


def test_what_a_user_wrote_on_a_run_stays(sweep: Sweep) -> None:
    run_id = sweep.runs()[0].info.run_id
    sweep.client.set_tag(run_id, "mlflow.note.content", "look at this one")
    sweep.client.set_tag(run_id, "mine", "yes")
    sweep.sync()
    tags = sweep.client.get_run(run_id).data.tags
    assert (tags["mlflow.note.content"], tags["mine"]) == ("look at this one", "yes")


def test_a_failed_attempt_says_on_its_page_what_where_and_what_next(sweep: Sweep) -> None:
    shown = sweep.view()
    bad = next(run for run in shown.values() if run["tags"].get("ptqbench.failure_kind") == "NUMERICAL")
    assert bad["tags"]["ptqbench.failure_message"] == NUMERICAL.message
    note = bad["tags"]["mlflow.note.content"]
    assert note.startswith("**NUMERICAL** in quantize: `layers.3: Hessian`  \n`not finite`  \n**Next:** ")
    assert f"make resubmit ARGS='name=mine {sweep.cells[1].key[:16]}'" in note
    assert "bits_per_weight" not in bad["metrics"] and "traceback.txt" in bad["artifacts"]


def test_a_repeated_cell_tells_its_history_and_an_attempt_shows_no_checkpoint_of_a_later_one(sweep: Sweep) -> None:
    shown = sweep.view()
    (first,) = [run for run in shown.values() if run["tags"].get("ptqbench.failure_kind") == "WORKER_LOST"]
    (second,) = [run for run in shown.values() if run["tags"].get("ptqbench.attempt_number") == "2"]
    assert (first["name"], second["name"]) == ("w4", "w4, attempt 2")
    assert "attempt 1: WORKER_LOST in quantize" in second["tags"]["mlflow.note.content"]
    assert "manifest.json" not in first["artifacts"] and "manifest.json" in second["artifacts"]


def test_the_sweep_s_page_counts_cells_and_names_those_that_failed(sweep: Sweep) -> None:
    shown = sweep.view()["mine "]
    assert shown["metrics"] == {
        "num_cells": 3,
        "num_succeeded": 2,
        "num_failed": 1,
        "num_retried": 1,
        "num_attempts": 4,
    }
    assert "- w3: **NUMERICAL** in quantize, attempt 1: `layers.3: Hessian`" in shown["tags"]["mlflow.note.content"]


def test_a_message_of_any_length_fits_on_the_pages(sweep: Sweep) -> None:
    for _ in range(25):
        sweep.fail(sweep.cells[1], replace(NUMERICAL, message="x" * 100_000))
    tracker = sweep.tracker()
    sweep.show(tracker)
    assert tracker.problem is None and tracker.num_runs == 29


def test_mlflow_that_fails_in_the_middle_is_made_up_for_once_it_answers(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = sweep.tracker()
    sweep.fail(sweep.cells[1], NUMERICAL)
    with monkeypatch.context() as patch:

        def away(*arguments: object, **named: object) -> None:
            raise MlflowException("the database is away\nfor some reason")

        patch.setattr(tracker._client, "set_terminated", away)
        sweep.show(tracker)
        assert tracker.problem == "MLflow has stopped answering: the database is away"
        assert "RUNNING" in {run.info.status for run in sweep.runs()}
    sweep.show(tracker)
    assert tracker.problem is None and tracker.num_runs == 5
    assert {run.info.status for run in sweep.runs()} == {"FAILED", "FINISHED"}


def test_a_slow_mlflow_is_not_waited_for_beyond_the_deadline(sweep: Sweep) -> None:
    tracker = sweep.tracker()
    for _ in range(3):
        sweep.fail(sweep.cells[1], NUMERICAL)
    tracker.deadline = time.monotonic()
    sweep.show(tracker)
    assert tracker.problem == "MLflow is slow: 3 attempts are not shown yet"
    assert sweep.sync().num_runs == 7


def test_a_sweep_of_the_same_name_over_another_storage_is_another_sweep(sweep: Sweep, tmp_path: Path) -> None:
    before = sweep.view()
    other = Sweep(tmp_path / "other")
    other.cells = sweep.cells
    other.fail(sweep.cells[0], NUMERICAL)
    tracker = Tracker(LOCAL, sweep.results, other.storage, "mine", {})
    other.show(tracker)
    assert tracker.num_runs == 1 and len(sweep.runs("sweep")) == 2
    assert sweep.sync().num_runs == 4 and len(sweep.runs()) == 5
    for run in sweep.runs("sweep"):
        if run.data.tags["ptqbench.storage"] == other.storage.id:
            sweep.client.delete_run(run.info.run_id)
    for run in sweep.runs():
        if run.data.tags["ptqbench.storage"] == other.storage.id:
            sweep.client.delete_run(run.info.run_id)
    assert sweep.view() == before


def test_results_that_were_moved_are_not_shown_into_the_place_they_came_from(sweep: Sweep, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sweep.results / "mlflow", copy / "mlflow")
    with pytest.raises(PrerequisiteError, match=r"its files belong to .* move that directory away, then make sync"):
        Tracker(LOCAL, copy, sweep.storage, "mine", {})


def test_tables_that_cannot_be_read_are_named_with_the_way_out(sweep: Sweep) -> None:
    (sweep.results / "mlflow" / "mlflow.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(
        PrerequisiteError, match=r"cannot be used: .*file is not a database.*make sync ARGS='name=mine'"
    ):
        sweep.tracker()


WRITER = """
import sys
from pathlib import Path
from orchestrator.cell import CellStatus
from tests.orchestrator.hand_made import make_cell, with_bits
from tests.orchestrator.tracked_sweep import NUMERICAL, Sweep
sweep = Sweep(Path(sys.argv[1]), sys.argv[2])
sweep.cells = [make_cell(with_bits(4), label="w4")]
for _ in range(int(sys.argv[3])):
    sweep.fail(sweep.cells[0], NUMERICAL)
print("ready", flush=True)
sys.stdin.readline()
tracker = sweep.tracker()
sweep.show(tracker)
tracker.close(CellStatus.FAILED, sweep.tables)
print(tracker.problem)
"""


@pytest.mark.slow
def test_two_drivers_may_write_to_one_new_database_and_one_of_them_may_be_killed(tmp_path: Path) -> None:
    count = 20
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name, str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for driver in drivers:
        assert driver.stdout is not None and driver.stdin is not None
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:  # at once, so that both find no tables
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
    artifacts = tmp_path / "mlflow" / "artifacts"
    while drivers[1].poll() is None and len(list(artifacts.glob("*"))) < count // 2:
        time.sleep(0.01)
    drivers[1].kill()
    output, _ = drivers[0].communicate(timeout=200)
    assert output == "None\n"
    drivers[1].communicate()

    sweeps = [Sweep(tmp_path, name) for name in ("one", "two")]
    for sweep in sweeps:
        sweep.cells = [make_cell(with_bits(4), label="w4")]
        assert sweep.sync().num_runs == count
    repaired = sweep.view()
    assert len(repaired) == 2 * (count + 1)
    the_artifacts(sweep)
    the_database(sweep)
    for sweep in sweeps:
        sweep.sync()
    assert sweep.view() == repaired


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give it more: limit=<seconds>", "`give it more: limit=<seconds>`"),
        ("no task `piqa`", "`` no task `piqa` ``"),
        ("`` twice", "``` `` twice ```"),
    ],
)
def test_messages_are_shown_as_they_stand(text: str, shown: str) -> None:
    assert run_page._code(text) == shown
