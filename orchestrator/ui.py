"""MLflow's pages on loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from workers.errors import PrerequisiteError

HOST = "127.0.0.1"
_POLL_SECONDS = 0.1


def serve(store_uri: str, port: int, ready: Callable[[str], None]) -> int:
    """Serve a store until the server ends (Ctrl-C ends it too), and return its exit code.

    `ready` is called with the address once the server answers there: it takes seconds to start.

    Raises:
        PrerequisiteError: something else listens on the port.
    """
    if _listens(port):
        raise PrerequisiteError(
            f"port {port} of {HOST} is in use; another one: `ptqbench ui --port {port % 65535 + 1}`"
        )
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "ui", "--backend-store-uri", store_uri]
    without_jobs = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nothing here asks for any
    with subprocess.Popen(
        [*command, "--workers", "1", "--host", HOST, "--port", str(port)], env=without_jobs
    ) as server:
        while server.poll() is None and not _listens(port):
            time.sleep(_POLL_SECONDS)
        if server.returncode is None:
            ready(f"http://{HOST}:{port}")
        return server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
