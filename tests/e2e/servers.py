"""Servers that tests start on loopback: MLflow, and PostgreSQL for its tables."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.command_line import ENVIRONMENT


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """MLflow on loopback, with its artifacts in a directory, and its tables there too unless `store` says where."""

    def __init__(self, directory: Path, store: str | None = None) -> None:
        self._directory = directory
        self._store = store or f"sqlite:///{directory / 'server.db'}"
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def artifacts(self) -> Path:
        """Where the artifacts lie that clients send it."""
        return self._directory / "files"

    def start(self) -> None:
        options = ["--backend-store-uri", self._store, "--artifacts-destination", str(self.artifacts)]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        log = (self._directory / "server.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options, *address],
            env=ENVIRONMENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # five processes that do nothing
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self._directory / "server.log").read_text())

    def stop(self) -> None:
        """With its own children: it starts a process for its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def initdb() -> Path | None:
    """PostgreSQL's command that makes a cluster of databases: on the path, or where Debian has it."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found) if found else debian[-1] if debian else None


@contextmanager
def postgresql(programs: Path) -> Iterator[str]:
    """A PostgreSQL of its own on loopback, with an empty database; its address as SQLAlchemy writes it.

    programs: the directory of initdb and pg_ctl. PostgreSQL refuses to run as root, so root lends it to nobody.
    """
    unprivileged = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="postgresql-"))  # pytest's own are closed to others
    try:
        if unprivileged:
            shutil.chown(directory, "nobody", "nogroup")
        data = directory / "data"

        def call(*command: str) -> None:
            subprocess.run(
                [str(programs / command[0]), *command[1:]],
                cwd=directory,
                check=True,
                stdout=subprocess.DEVNULL,
                **unprivileged,  # type: ignore[call-overload]
            )

        call("initdb", "--pgdata", str(data), "--username", "mlflow", "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={directory} -c fsync=off"
        call("pg_ctl", "start", "--wait", "--pgdata", str(data), "--log", str(directory / "log"), "--options", options)
        try:
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "--pgdata", str(data), "--mode", "immediate")
    finally:
        shutil.rmtree(directory)
