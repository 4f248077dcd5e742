"""The queue under everything that can break: scheduling_rules.py holds, and the work for an event does not grow."""

import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.events import (
    EvaluateEnded,
    Event,
    Job,
    Node,
    NodesChanged,
    QuantizeEnded,
    StartEvaluate,
    StartHost,
    StartQuantize,
    StopHost,
    Tick,
)
from orchestrator.schedule import Schedule
from tests.orchestrator.scenarios import CLUSTERS, FAULTS, FOUR, KINDS, NODES, ONE, job, sweeps
from tests.orchestrator.simulated_cluster import Faults, SimulatedCluster

# How often each fault really occurs in two thousand schedules, at the least.
AT_LEAST = {
    "worker dies": 1000,
    "worker hangs": 200,
    "worker dies with its driver": 1000,
    "node leaves": 600,
    "node joins": 600,
    "no node is large enough for a time": 4,
    "reply late": 1000,
    "reply lost": 200,
    "driver dies": 600,
    "end that only the next driver sees": 200,
    "cell left to another sweep": 200,
    "driver stalls": 400,
    "OUT_OF_MEMORY": 200,
    "TRANSIENT": 100,
    "other failure": 100,
}


def simulate(num_schedules: int) -> Counter[str]:
    """Random sweeps under random faults, every rule checked at every step. Returns how often what occurred."""
    counted: Counter[str] = Counter()

    @settings(max_examples=num_schedules)
    @given(
        jobs=sweeps(),
        nodes=st.sampled_from(CLUSTERS),
        faults=FAULTS,
        seed=st.integers(0, 2**32),
        idle_seconds=st.sampled_from([0.0, 30.0, 1e6]),
    )
    def run(jobs: list[Job], nodes: tuple[Node, ...], faults: Faults, seed: int, idle_seconds: float) -> None:
        record = SimulatedCluster(jobs, list(nodes), seed=seed, faults=faults, idle_seconds=idle_seconds).run()
        counted.update(record.faults)
        counted.update({"schedules": 1, "cells": len(jobs), "actions": len(record.actions)})

    run()
    return counted


def test_every_cell_ends_once_and_no_rule_is_broken_whatever_fails_leaves_or_comes_back() -> None:
    simulate(200)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_schedules_with_every_kind_of_fault_break_no_rule() -> None:
    """`pytest -s` shows how often each fault occurred."""
    counted = simulate(2_000)
    print("", *(f"{what:40}{number:10,}" for what, number in counted.most_common()), sep="\n")
    assert counted["schedules"] >= 2_000
    assert {fault: counted[fault] for fault, least in AT_LEAST.items() if counted[fault] < least} == {}


@settings(max_examples=50)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_without_faults_every_cell_succeeds_and_each_checkpoint_is_made_once(jobs: list[Job], seed: int) -> None:
    cluster = SimulatedCluster(jobs, list(NODES), seed=seed)
    record = cluster.run()
    assert set(cluster.ends.values()) == {None}
    unmade = {j.quantize_key for j in jobs if not j.checkpoint_ready}
    keys = {j.key: j.quantize_key for j in jobs}
    assert sorted(keys[a.key] for a in record.of(StartQuantize)) == sorted(unmade)
    assert len(record.of(StartEvaluate)) == len(jobs)
    assert len(record.of(StartHost)) == len(record.of(StopHost))


@settings(max_examples=50)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_nodes_that_come_and_go_cost_no_cell_while_each_comes_back(jobs: list[Job], seed: int) -> None:
    faults = Faults(node_changes=2, node_seconds=60.0, delay_seconds=8.0)
    cluster = SimulatedCluster(jobs, list(NODES), seed=seed, faults=faults)
    cluster.run()
    assert set(cluster.ends.values()) == {None}


@settings(max_examples=50)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_drivers_that_die_or_stall_cost_no_cell(jobs: list[Job], seed: int) -> None:
    faults = Faults(restarts=3, stalls=2, slow_seconds=20.0)
    cluster = SimulatedCluster(jobs, list(NODES), seed=seed, faults=faults)
    cluster.run()
    assert set(cluster.ends.values()) == {None}


@settings(max_examples=50)
@given(jobs=sweeps(), seed=st.integers(0, 2**32))
def test_on_one_small_node_everything_still_drains(jobs: list[Job], seed: int) -> None:
    cluster = SimulatedCluster(jobs, [Node("only", 4, 16, 80.0)], seed=seed, idle_seconds=1e6)
    cluster.run()
    assert set(cluster.ends.values()) == {None}


def test_equal_events_lead_to_equal_actions() -> None:
    def actions() -> list[Any]:
        jobs = [job(f"c{i}", model=f"m{i % 3}", shares=f"q{i // 2}") for i in range(20)]
        faults = Faults(failure_chance=0.2, kinds=KINDS, node_changes=3, delay_seconds=5.0)
        return SimulatedCluster(jobs, list(NODES), seed=3, faults=faults).run().actions

    assert actions() == actions()


def calls_per_event(num_cells: int) -> float:
    """Python calls that `handle` makes for one event, on average over a sweep of 20 models."""
    jobs = [
        job(f"c{i}", model=f"m{i % 20}", evaluate=(FOUR,) if i % 20 > 15 else (ONE,), baseline=i < 20)
        for i in range(num_cells)
    ]
    schedule = Schedule(jobs, idle_seconds=30.0)
    calls = 0
    events: list[Event] = [Tick(0.0), NodesChanged(tuple(Node(f"n{i}", 8, 64, 512.0) for i in range(2)))]

    def count(frame: Any, what: str, argument: Any) -> None:
        nonlocal calls
        calls += what == "call"

    number = 0
    while not schedule.finished:
        sys.setprofile(count)
        actions = schedule.handle(events.pop(0))
        sys.setprofile(None)
        number += 1
        for action in actions:
            match action:
                case StartQuantize(key):
                    events.append(QuantizeEnded(key, None))
                case StartEvaluate(key, host_id):
                    events.append(EvaluateEnded(key, host_id, None))
    return calls / number


def test_the_work_for_one_event_does_not_grow_with_the_number_of_cells() -> None:
    assert calls_per_event(2000) < 1.5 * calls_per_event(200)
