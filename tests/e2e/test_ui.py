"""`ptqbench ui` as somebody opens it."""

import os
import re
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.command_line import ENVIRONMENT, command, hear_ctrl_c, ptqbench
from tests.e2e.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_the_address_is_said_when_it_answers_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    port = free_port()
    view = subprocess.Popen(
        command("ui", "--port", str(port)),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        assert view.stdout is not None
        said = next(line for line in view.stdout if line.startswith("MLflow UI:"))
        address = re.search(rf"http://127\.0\.0\.1:{port}\S*", said)
        assert address is not None
        with urllib.request.urlopen(address[0], timeout=60) as page:
            assert b"MLflow" in page.read()
        os.killpg(view.pid, signal.SIGINT)  # as a terminal does: to the command and the server alike
        assert view.wait(30) == 130
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if view.poll() is None:
            os.killpg(view.pid, signal.SIGKILL)


def test_a_port_in_use_is_said_with_another(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = ptqbench(tmp_path, "ui", "--port", str(port))
    assert ended.returncode == 3
    assert f"port {port} of 127.0.0.1 is in use" in ended.stderr and "--port" in ended.stderr
