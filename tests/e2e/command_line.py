"""Running the command as a user does, and reading what it left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.workers.tiny_requests import random_windows

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli", *arguments]


def hear_ctrl_c() -> None:
    """As under a terminal: what a shell starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ptqbench(directory: Path, *arguments: str, timeout: float = 560) -> subprocess.CompletedProcess[str]:
    """Run to the end in `directory`, where results/ appears."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_tokens(directory: Path, vocab_size: int = 128) -> list[str]:
    """Random token streams; returns the overrides that calibrate on one and score the other with Transformers."""
    np.save(directory / "calibration.npy", random_windows(8, 64, vocab_size))
    np.save(directory / "held.npy", random_windows(1, 640, vocab_size)[0])
    return [
        "calibration=tokens",
        f"calibration.path={directory / 'calibration.npy'}",
        "calibration.num_sequences=8",
        "calibration.sequence_length=64",
        "suite=tokens",
        f"suite.path={directory / 'held.npy'}",
        "suite.sequence_length=64",
        "suite.dtype=float32",
        "engine=transformers",
    ]


def cells(directory: Path, name: str) -> pd.DataFrame:
    """The table of a sweep, by label."""
    return pd.read_csv(directory / "results" / name / "cells.csv").set_index("label")


def attempts(directory: Path) -> list[str]:
    """Every attempt in the storage."""
    return sorted(path.name for path in (directory / "results" / "storage" / "attempts").iterdir())


def client(directory: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{directory / 'results' / 'mlflow' / 'mlflow.db'}")


def runs(directory: Path, kind: str = "attempt") -> Sequence[Run]:
    """MLflow's runs of a kind: sweep or attempt."""
    mlflow = client(directory)
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    found: Sequence[Run] = mlflow.search_runs(experiments, f"tags.`ptqbench.kind` = '{kind}'", max_results=1000)
    return found


def artifacts(directory: Path, run: Run) -> set[str]:
    """Paths of the files attached to a run."""
    return {artifact.path for artifact in client(directory).list_artifacts(run.info.run_id)}
