"""Kill processes of real sweeps on a real cluster, round after round, and see that nothing is lost: `make soak`."""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.e2e.servers import Server
from tests.soak.faults import FAULTS
from tests.soak.ledger import Ledger
from tests.soak.ray_cluster import RayCluster
from tests.soak.rounds import Arena, Round, plan, play, undisturbed
from tests.soak.sweep import NODE_SIZES, on_cluster, write_inputs


def main() -> int:
    """Play the rounds and print what became of them. Returns 1 when anything was lost, doubled, open or different."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to leave everything; by default a temporary one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing it has started is left
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="ptq-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"everything lies in {directory}", flush=True)
    server, started = Server(directory), time.monotonic()
    try:
        server.start()
        with RayCluster(directory, NODE_SIZES) as cluster:
            arena = Arena(directory, [*write_inputs(directory), *on_cluster(cluster)], cluster, server)
            peace, seconds = undisturbed(arena)
            print(f"undisturbed: {len(peace.metrics)} cells in {seconds:.0f} s", flush=True)
            played = [_round(arena, number, arguments.seed, peace) for number in _numbers(arguments)]
    finally:
        server.stop()
    _print_table(played, time.monotonic() - started)
    return 1 if any(each.ledger.problems for each in played) else 0


def _numbers(arguments: argparse.Namespace) -> range:
    return range(arguments.first, arguments.first + arguments.rounds)


def _round(arena: Arena, number: int, seed: int, peace: Ledger) -> Round:
    kills = plan(number, seed)
    print(f"round {number}: " + ", ".join(f"{kill.kind} after {kill.after:.0%}" for kill in kills), flush=True)
    played = play(arena, number, kills, seed, peace)
    ends = ", ".join(f"{count} {end}" for end, count in played.ledger.ends.items())
    print(f"  {played.seconds:5.0f} s  drivers ended {played.codes}; attempts: {ends}", flush=True)
    for problem in played.ledger.problems:
        print(f"  PROBLEM {problem}", flush=True)
    return played


def _print_table(played: list[Round], seconds: float) -> None:
    hits, ends = Counter(hit for each in played for hit in each.hits), sum((e.ledger.ends for e in played), Counter())
    rows = {
        "rounds": len(played),
        "minutes": f"{seconds / 60:.0f}",
        **{f"killed: {kind}": hits[kind] for kind in FAULTS},
        **{f"attempts that ended {end}": count for end, count in sorted(ends.items())},
        "runs needed after the faults, at most": max(each.num_runs_after for each in played),
        "cells lost": sum(each.ledger.lost for each in played),
        "cells run again after they had succeeded": sum(each.ledger.doubled for each in played),
        "left RUNNING (storage, MLflow)": sum(each.ledger.running for each in played),
        "rounds with any problem": sum(bool(each.ledger.problems) for each in played),
    }
    for name, value in rows.items():
        print(f"{name:45} {value}")


if __name__ == "__main__":
    sys.exit(main())
