"""Two drivers of different sweeps over one storage, in any order of looks, starts, ends and crashes."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator import lease as leases
from orchestrator.cell import Cell, CellStatus
from orchestrator.lease import Lease
from orchestrator.storage import Attempt, AttemptTaken, CellState, DriverName, Storage, end_attempt, lost
from tests.orchestrator.hand_made import make_cell, with_bits
from workers.api import AttemptResult, Failure, FailureKind, to_json
from workers.files import create

CELLS = [make_cell(with_bits(bits)) for bits in (2, 3)]
NOBODY = 2**22 + 1  # no process has this number
FAILURE = Failure("quantize", FailureKind.NUMERICAL, "NaN")
NAMES = st.sampled_from(["one", "two"])
CHOSEN = st.sampled_from(CELLS)


@pytest.fixture(autouse=True, scope="module")
def nothing_here_need_survive_a_power_cut() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class Driving:
    """A driver: its lease, what it has seen, what it has open."""

    def __init__(self, root: Path, sweep: str) -> None:
        self.storage = Storage(root)
        self.lease: Lease = self.storage.lease(sweep).__enter__()
        self.storage._driver = DriverName(sweep, self.lease.number)
        self.storage.end_abandoned(CELLS)
        self.seen: dict[str, CellState] = self.storage.states(CELLS)
        self.open: dict[str, Attempt] = {}

    def crash(self) -> None:
        """Leave everything as it is; the process is gone."""
        self.lease._stop.set()
        self.lease._thread.join()
        path = leases._path(self.lease._directory, self.lease.number)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": NOBODY}))


class TwoDrivers(RuleBasedStateMachine):
    """Rules are what drivers and workers do; invariants hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.root = Path(self.directory.name) / "storage"
        self.drivers: dict[str, Driving] = {}
        self.results: dict[str, AttemptResult] = {}  # as they were first seen
        self.succeeded: set[str] = set()
        self.left: list[tuple[Cell, Attempt]] = []  # attempts whose driver has died: their workers may live on

    @initialize()
    def begin(self) -> None:
        Storage(self.root)

    def teardown(self) -> None:
        for driver in self.drivers.values():
            driver.lease.__exit__(None, None, None)
        self.directory.cleanup()

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        if name not in self.drivers:
            self.drivers[name] = Driving(self.root, name)

    @precondition(lambda self: self.drivers)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        driver = data.draw(st.sampled_from(list(self.drivers.values())))
        driver.storage.end_abandoned(CELLS)
        driver.seen = driver.storage.states(CELLS)

    @precondition(lambda self: self.drivers)
    @rule(data=st.data(), cell=CHOSEN)
    def open(self, data: st.DataObject, cell: Cell) -> None:
        driver = data.draw(st.sampled_from(list(self.drivers.values())))
        seen = driver.seen[cell.key]
        if cell.key in driver.open or seen.status in (CellStatus.RUNNING, CellStatus.SUCCEEDED):
            return
        try:
            driver.open[cell.key] = driver.storage.open_attempt(cell, seen.next_number)
            driver.seen = driver.storage.states(CELLS)
        except AttemptTaken:
            assert seen != driver.storage.states(CELLS)[cell.key]  # somebody was there since

    @precondition(lambda self: any(driver.open for driver in self.drivers.values()))
    @rule(data=st.data(), success=st.booleans())
    def end(self, data: st.DataObject, success: bool) -> None:
        driver = data.draw(st.sampled_from([driver for driver in self.drivers.values() if driver.open]))
        key = data.draw(st.sampled_from(list(driver.open)))
        attempt, cell = driver.open.pop(key), next(cell for cell in CELLS if cell.key == key)
        if success:
            assert write_success(cell, attempt), "an attempt of a live driver was ended by another"
        else:
            assert end_attempt(attempt.directory, cell, CellStatus.FAILED, FAILURE).failure == FAILURE

    @precondition(lambda self: self.drivers)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        driver = self.drivers.pop(data.draw(st.sampled_from(list(self.drivers))))
        driver.crash()
        self.left += [(cell, driver.open[cell.key]) for cell in CELLS if cell.key in driver.open]

    @precondition(lambda self: self.left)
    @rule(data=st.data(), success=st.booleans())
    def a_worker_outlives_its_driver(self, data: st.DataObject, success: bool) -> None:
        cell, attempt = self.left.pop(data.draw(st.integers(0, len(self.left) - 1)))
        if success:
            write_success(cell, attempt)
        else:
            end_attempt(attempt.directory, cell, CellStatus.FAILED, lost("evaluate", "late"))

    @invariant()
    def attempts_are_numbered_without_doubles_and_end_once(self) -> None:
        for cell, state in self.states():
            assert [a.number for a in state.attempts] == list(range(1, state.next_number))
            for attempt in state.attempts:
                if attempt.result is not None:
                    assert self.results.setdefault(attempt.name, attempt.result) == attempt.result
                else:
                    assert attempt.name not in self.results
            assert cell.key not in self.succeeded or state.status is CellStatus.SUCCEEDED

    @invariant()
    def at_most_one_is_open_and_nothing_is_tried_after_a_success(self) -> None:
        for cell, state in self.states():
            assert sum(a.result is None for a in state.attempts) <= 1
            won = [a for a in state.attempts if a.result is not None and a.result.status == "SUCCEEDED"]
            assert len(won) <= 1 and all(a is state.attempts[-1] for a in won)
            self.succeeded |= {cell.key} if won else set()

    def states(self) -> list[tuple[Cell, CellState]]:
        found = Storage(self.root).states(CELLS) if self.root.exists() else {}
        return [(cell, found[cell.key]) for cell in CELLS if cell.key in found]


def write_success(cell: Cell, attempt: Attempt) -> bool:
    """As the worker does."""
    result = AttemptResult(cell.evaluate_key, cell.quantize_key, "SUCCEEDED")
    return create(attempt.directory / "result.json", to_json(result))


TestTwoDrivers: Any = TwoDrivers.TestCase
TestTwoDrivers.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
