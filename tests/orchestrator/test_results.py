"""results/<sweep>/sweep.json: how a sweep was started last."""

import shutil
from pathlib import Path

import pytest

from conf.errors import ConfigError
from orchestrator import results
from orchestrator.results import SweepRecord
from orchestrator.storage import Storage
from orchestrator.sweep import Sweep, expand
from workers.errors import PrerequisiteError

RECORD = SweepRecord(["model=hf", "model.repo='/a b'"], ["1" * 64])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_name_alone_stands_for_how_the_sweep_was_started() -> None:
    results.write_record("mine", RECORD)
    assert results.as_started(["name=mine"]) == RECORD.overrides
    results.write_record("mine", SweepRecord(["bits=2"], []))
    assert results.as_started(["name=mine"]) == ["bits=2"]


@pytest.mark.parametrize("overrides", [[], ["bits=3"], ["name=mine", "bits=3"]])
def test_anything_more_is_meant_as_it_stands(overrides: list[str]) -> None:
    results.write_record("mine", RECORD)
    assert results.as_started(overrides) == overrides


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no sweep `mine` under .*results; there are: none yet"):
        results.as_started(["name=mine"])
    results.write_record("other", RECORD)
    results.write_record("another", RECORD)
    with pytest.raises(ConfigError, match="there are: another, other"):
        results.as_started(["name=mine"])


def test_a_sweep_is_continued_as_it_was_started_but_for_what_is_said_now() -> None:
    results.write_record("mine", SweepRecord(["name=mine", "bits=2,3", "model=hf"], []))
    assert results.continued(["name=mine"]) == ["bits=2,3", "model=hf", "name=mine"]
    assert results.continued(["name=mine", "bits=4", "cluster.storage=/a"]) == [
        "model=hf",
        "name=mine",
        "bits=4",
        "cluster.storage=/a",
    ]


def test_without_a_name_the_default_sweep_is_continued() -> None:
    results.write_record("mini", SweepRecord(["bits=2"], []))
    assert results.continued(["tracking=server"]) == ["bits=2", "tracking=server"]
    with pytest.raises(ConfigError, match=r"no sweep `other`.* there are: mini"):
        results.continued(["name=other"])


def test_all_sweeps_are_found_and_nothing_else() -> None:
    results.write_record("mine", RECORD)
    (results.results_root() / "storage" / "attempts").mkdir(parents=True)
    (results.results_root() / "notes.txt").write_text("")
    assert results.all_records() == {"mine": RECORD}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"overrides": []}', '{"overrides": [], "quantize_keys": [], "x": 1}']
)
def test_a_damaged_record_is_named(content: str) -> None:
    results.write_record("mine", RECORD)
    path = results.sweep_directory("mine") / "sweep.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"mine/sweep\.json: not what a sweep wrote"):
        results.as_started(["name=mine"])


# --- the storage a sweep ran on --------------------------------------------------------------------------------------


def run_once(name: str, storage: Path) -> Sweep:
    """What a driver does at its start; the sweep again."""
    sweep = expand(["experiment=smoke", "method=rtn", f"name={name}", f"cluster.storage={storage}"])
    opened = results.open_storage(sweep)
    results.write_record(name, SweepRecord([], [], str(opened.root), opened.id))
    return sweep


def test_a_storage_that_is_gone_from_its_place_is_not_begun_anew(tmp_path: Path) -> None:
    sweep = run_once("mine", tmp_path / "mounted")
    there = results.open_storage(sweep).id
    away = (tmp_path / "mounted").rename(tmp_path / "away")
    for gone in (lambda: None, (tmp_path / "mounted").mkdir, lambda: Storage(tmp_path / "mounted")):
        gone()
        with pytest.raises(PrerequisiteError, match=r"that sweep mine ran on is not there now .*rm .*mine/sweep"):
            results.open_storage(sweep)
    shutil.rmtree(tmp_path / "mounted")
    away.rename(tmp_path / "mounted")
    assert results.open_storage(sweep).id == there


def test_a_sweep_may_begin_anew_elsewhere_or_without_its_record(tmp_path: Path) -> None:
    sweep = run_once("mine", tmp_path / "one")
    run_once("mine", tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert results.open_storage(sweep).root == tmp_path / "one"  # the record is of the other by now
    run_once("mine", tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    (results.sweep_directory("mine") / "sweep.json").unlink()
    assert results.open_storage(sweep).root == tmp_path / "one"
