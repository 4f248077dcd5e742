"""Where the seconds of `make sweep` go: a fresh run of experiment=mini, and a second one that finds everything done."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print seconds per stage, summed over cells, and the share that is neither quantizing nor scoring."""
    with tempfile.TemporaryDirectory() as directory:
        first, second = _sweep(directory), _sweep(directory)
        results = [json.loads(p.read_text()) for p in Path(directory).glob("results/storage/attempts/*/result.json")]
    quantize = [r["quantize"] for r in results]
    seconds = [r["evaluate"]["seconds"] for r in results]
    rows = {
        "import (quantize workers)": sum(q["worker_start_seconds"] for q in quantize),
        "quantize": sum(q["seconds"] for q in quantize),
        "import (engine hosts)": sum(s.get("import", 0.0) for s in seconds),
        "engine: start": sum(s.get("load.engine", 0.0) for s in seconds),
        "engine: swap weights, canary": sum(s["load"] - s.get("load.engine", 0.0) for s in seconds),
        "dense copy, text, hashes": sum(s.get("dense", 0.0) + s.get("text", 0.0) + s.get("hash", 0.0) for s in seconds),
        "score: perplexity": sum(s.get("perplexity", 0.0) for s in seconds),
        "score: tasks": sum(s.get("tasks", 0.0) for s in seconds),
    }
    work = rows["quantize"] + rows["score: perplexity"] + rows["score: tasks"]
    busy = sum(rows.values())
    for name, value in rows.items():
        print(f"{name:32} {value:8.1f} s")
    print(f"{'cells':32} {len(results):8d}")
    print(f"{'wall clock, first run':32} {first:8.1f} s")
    print(f"{'wall clock, second run':32} {second:8.1f} s")
    print(f"{'neither quantizing nor scoring':32} {(busy - work) / busy:8.1%} of the workers' busy seconds")


def _sweep(directory: str) -> float:
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "orchestrator.cli", "sweep"], cwd=directory, env=environment, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
