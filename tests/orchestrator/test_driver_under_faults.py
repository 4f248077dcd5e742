"""The real driver, storage and tracker under everything that can break: nothing is lost, and nothing counts twice."""

import functools
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import driver as driving
from orchestrator import tracker as tracking
from orchestrator.cell import Cell, CellStatus
from orchestrator.events import Job, Node
from orchestrator.retry import GiveUp, decide
from orchestrator.storage import Storage
from tests.orchestrator.hand_made import make_cell, make_config
from tests.orchestrator.scenarios import CPU, ONE, TWO
from tests.orchestrator.simulated_driver import FAULT_SECONDS, Chances, World

NODES = [Node("n0", 2, 8, 64.0), Node("n1", 2, 8, 64.0)]
MEMORY = Path("/dev/shm")  # much faster than a disk where there is one
DIRECTORY = MEMORY if os.access(MEMORY, os.W_OK) else None

CHANCES = st.builds(
    Chances,
    fails=st.sampled_from([0.0, 0.2, 0.4]),
    dies=st.sampled_from([0.0, 0.2]),
    hangs=st.sampled_from([0.0, 0.1]),
    num_kills=st.integers(0, 5),
    num_node_changes=st.integers(0, 2),
    num_outages=st.integers(0, 3),
    num_intruders=st.integers(0, 2),
)


# How often each fault really occurs in four hundred sweeps, at the least.
AT_LEAST = {
    "driver killed": 200,
    "sweep refused: no MLflow": 100,
    "MLflow goes away": 100,
    "node leaves": 100,
    "worker dies": 100,
    "worker dies just after its result was written": 20,
    "result written after the driver's death": 20,
    "result written too late": 10,
    "stage passes its time limit": 20,
    "another sweep takes a cell": 40,
    "OUT_OF_MEMORY": 20,
    "TRANSIENT": 20,
}


@functools.cache
def cells() -> tuple[Cell, ...]:
    """Pairs that share a checkpoint and differ in what is scored."""
    config = make_config()
    other = replace(config.suite, tasks=["arc_easy"])
    return tuple(
        make_cell(replace(config, seed=seed, suite=suite)) for seed in range(3) for suite in (config.suite, other)
    )


@st.composite
def sweeps(draw: st.DrawFn) -> list[Job]:
    """Jobs of some of the cells."""
    chosen = draw(st.lists(st.sampled_from(range(len(cells()))), min_size=1, unique=True))
    ladders = st.sampled_from([(CPU,), (ONE,), (ONE, TWO), (TWO,)])
    quantize, evaluate = draw(ladders), draw(ladders)
    model = draw(st.integers(1, 2))
    return [
        Job(cell.key, cell.quantize_key, f"m{i % model}", quantize, evaluate, 100.0, 50.0, i == 0, False)
        for i in chosen
        for cell in [cells()[i]]
    ]


def check(world: World, storage: Storage) -> None:
    """What must be true once a sweep has come to its end and MLflow has been synchronized."""
    states = storage.states(world.cells)
    jobs = {job.key: job for job in world.jobs}
    for cell in world.cells:
        state = states[cell.key]
        assert state.status in (CellStatus.SUCCEEDED, CellStatus.FAILED), f"{cell.key} has not ended"
        results = [attempt.result for attempt in state.attempts]
        assert None not in results, f"{cell.key} has an open attempt"
        assert "no node" not in str(results), "every node comes back long before work is given up"
        statuses = [result.status for result in results if result is not None]
        written = [world.written.get(a.name, status) for a, status in zip(state.attempts, statuses, strict=True)]
        assert statuses == written, f"{cell.key}: what a worker wrote was changed"
        assert CellStatus.SUCCEEDED not in statuses[:-1], f"{cell.key} was tried again after it had succeeded"
        assert [a.number for a in state.attempts] == list(range(1, len(statuses) + 1))
        last = state.attempts[-1]
        if state.status is CellStatus.FAILED and last.name not in world.unheard:
            own = [names for names in world.lives[cell.key] if last.name in names]
            failures = [a.result.failure for a in state.attempts if a.result and own and a.name in own[0]]
            if own:
                known = [failure for failure in failures if failure is not None]
                ladder = jobs[cell.key].quantize if known[-1].stage == "quantize" else jobs[cell.key].evaluate
                assert isinstance(decide(known, ladder), GiveUp), f"{cell.key} would have been tried again: {known}"
    world.check_shown(states)
    assert not list((storage.root / "attempts").glob(".*")), "a draft was left"


def simulate(num_sweeps: int) -> Counter[str]:
    """Random sweeps under random faults. Returns how often what occurred."""
    counted: Counter[str] = Counter()

    @settings(max_examples=num_sweeps)
    @given(jobs=sweeps(), chances=CHANCES, seed=st.integers(0, 2**32))
    def run(jobs: list[Job], chances: Chances, seed: int) -> None:
        keys = {job.key for job in jobs}
        chosen = [cell for cell in cells() if cell.key in keys]
        with tempfile.TemporaryDirectory(dir=DIRECTORY) as directory, pytest.MonkeyPatch.context() as patch:
            world = World(chosen, jobs, NODES, Path(directory), seed, chances)
            patch.setattr(driving, "time", world)
            patch.setattr(tracking, "MlflowClient", world.mlflow)
            while world.now < FAULT_SECONDS or not world.sweep():
                world.sweep()
                assert world.now < 10_000.0, "the sweep does not come to its end"
            world.calm()
            storage = Storage(Path(directory))
            tracker = world.tracker(storage, restore=True)
            tracker.log_attempts(chosen, storage.states(chosen))
            assert tracker.problem is None
            check(world, storage)
        counted.update(world.counted)
        counted.update({"sweeps": 1, "cells": len(chosen)})

    run()
    return counted


def test_whatever_dies_every_cell_ends_once_and_mlflow_shows_each_attempt_once() -> None:
    simulate(20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_hundred_sweeps_with_every_kind_of_fault_lose_nothing() -> None:
    """`pytest -s` shows how often each fault occurred."""
    counted = simulate(400)
    print("", *(f"{what:50}{number:10,}" for what, number in counted.most_common()), sep="\n")
    assert {fault: counted[fault] for fault, least in AT_LEAST.items() if counted[fault] < least} == {}
