"""A round: one sweep from nothing, disturbed at random moments, then healed and run until it is done."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.servers import Server
from tests.soak import ledger
from tests.soak.faults import ENDS_THE_DRIVER, FAULTS, Scene
from tests.soak.ledger import Ledger
from tests.soak.ray_cluster import RayCluster
from tests.soak.sweep import RUN_SECONDS, SweepUnderTest

LATEST = {"worker": 0.3}  # share of the stages after which there may be no process of a kind any more
VICTIM_SECONDS = 120.0  # how long a fault waits for a process of its kind
MAX_RUNS = 3  # after the faults; one is allowed


@dataclass(frozen=True)
class Kill:
    """kind: of FAULTS. after: share of the sweep's stages that have ended by then; delay: seconds from there on."""

    kind: str
    after: float
    delay: float


@dataclass
class Round:
    """What happened. hits: kinds that hit somebody. codes: how each driver ended (-9: killed)."""

    number: int
    hits: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    num_runs_after: int = 0
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)


def plan(number: int, seed: int) -> list[Kill]:
    """The kills of a round, the same for the same seed; each kind has its turn."""
    choice = random.Random(f"{seed} {number}")
    kinds = [list(FAULTS)[number % len(FAULTS)], *choice.choices(list(FAULTS), k=choice.randint(0, 2))]
    kills = [Kill(kind, choice.uniform(0.0, LATEST.get(kind, 0.9)), choice.uniform(0.0, 4.0)) for kind in kinds]
    return sorted(kills, key=lambda kill: kill.after)


@dataclass
class Arena:
    """What the rounds share."""

    directory: Path
    overrides: list[str]
    cluster: RayCluster
    server: Server

    def sweep(self, name: str) -> SweepUnderTest:
        """A sweep from nothing."""
        tracking = ["tracking=server", f"tracking.uri={self.server.uri}"]
        return SweepUnderTest(self.directory / name, name, [*self.overrides, *tracking])


def undisturbed(arena: Arena) -> tuple[Ledger, float]:
    """Run the sweep once in peace; returns what came of it, and the seconds."""
    sweep, started = arena.sweep("undisturbed"), time.monotonic()
    code = sweep.run()
    assert code == 0, sweep.log.read_text()
    found = ledger.read(sweep, arena.server.uri)
    assert not found.problems, found.problems
    return found, time.monotonic() - started


def play(arena: Arena, number: int, kills: list[Kill], seed: int, peace: Ledger) -> Round:
    """Play a round and read its ledger. peace: that of the undisturbed sweep."""
    played, sweep = Round(number), arena.sweep(f"round-{number}")
    choice = random.Random(f"{seed} {number} victims")
    started = time.monotonic()
    drivers = [sweep.start()]
    for kill in kills:
        while drivers[-1].poll() is None and _share_done(sweep, len(peace.metrics)) < kill.after:
            time.sleep(0.1)
        time.sleep(kill.delay)
        if drivers[-1].poll() is not None:  # done, or ended by the fault before
            drivers.append(sweep.start())
        hit = _strike(kill.kind, Scene(arena.cluster, arena.server, drivers[-1], choice))
        print(f"  {time.monotonic() - started:5.0f} s  {kill.kind}: {hit or 'nobody there'}", flush=True)
        if hit is None:
            continue
        played.hits.append(kill.kind)
        if kill.kind in ENDS_THE_DRIVER:
            code = drivers[-1].wait(RUN_SECONDS)
            print(f"  {time.monotonic() - started:5.0f} s  the driver ended: {code}", flush=True)
        time.sleep(choice.uniform(0.0, 5.0))
        _heal(arena, kill.kind)
    while drivers[-1].wait(RUN_SECONDS) != 0 and played.num_runs_after < MAX_RUNS:
        played.num_runs_after += 1
        drivers.append(sweep.start())
    played.codes = [driver.returncode for driver in drivers]
    played.seconds = time.monotonic() - started
    played.ledger = ledger.read(sweep, arena.server.uri)
    ledger.compare(played.ledger, peace)
    if played.codes[-1] != 0 or played.num_runs_after > 1:
        played.ledger.problems.append(f"drivers ended {played.codes}; {played.num_runs_after} runs after the faults")
    return played


def _share_done(sweep: SweepUnderTest, num_cells: int) -> float:
    """Of the two stages of each cell, how many have ended well, about."""
    attempts = sweep.storage / "attempts"
    return sum(len(list(attempts.glob(f"*/{name}"))) for name in ("quantize.json", "result.json")) / (2 * num_cells)


def _strike(kind: str, scene: Scene) -> str | None:
    """Hit somebody of this kind as soon as there is somebody."""
    deadline = time.monotonic() + VICTIM_SECONDS
    while (hit := FAULTS[kind](scene)) is None and scene.driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return hit


def _heal(arena: Arena, kind: str) -> None:
    """Start again what a fault has ended."""
    if "mlflow" in kind or kind == "everything":
        arena.server.start()
    arena.cluster.heal()
