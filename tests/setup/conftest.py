"""A checkout in which setup.sh runs for real, and every program it calls that would install something is a fake."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMMANDS = [
    *("bash", "cat", "chmod", "cut", "dirname", "du", "find", "flock", "g++", "git", "grep", "head", "make", "mkdir"),
    *("rm", "sed", "sha256sum", "sleep", "tail", "wc"),
]

# Stands for Python 3.11, for the environment's python, and for pip. It notes each call, and installs nothing.
# FAKE_PIP is evaluated at each `pip install`, with the arguments in "$@".
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_CALLS"
case "$1 ${2:-}" in
    "-m venv")
        mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
        echo "VIRTUAL_ENV=$3" >"$3/bin/activate"
        cat "$0" >"$3/bin/python"
        chmod +x "$3/bin/python" ;;
    "-m pip") eval "${FAKE_PIP:-}" ;;
esac
"""


@dataclass(frozen=True)
class Sandbox:
    """A copy of what setup.sh reads, a PATH that holds only `bin`, and a record of the fakes' calls."""

    root: Path
    bin: Path
    calls_file: Path

    def program(self, name: str, text: str) -> None:
        """Put a program on the PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        """What setup.sh and its children see."""
        return {"PATH": str(self.bin), "FAKE_CALLS": str(self.calls_file), **variables}

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run setup.sh to its end."""
        return self.shell("locks/setup.sh", **variables)

    def shell(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run bash with `arguments` in the copy."""
        command = ["bash", *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60)

    def take_calls(self) -> list[str]:
        """The calls of the fake Python since the last time, a line of arguments each."""
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return calls

    def stamps(self) -> list[Path]:
        """The marks of a finished setup."""
        return list(self.root.glob(".venv/.ptq-bench-*"))


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """Everything present: a Python 3.11, every tool, plenty of disk, no GPU."""
    root, programs = tmp_path / "checkout", tmp_path / "bin"
    programs.mkdir()
    shutil.copytree(REPOSITORY / "locks", root / "locks")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (root / "kernels").mkdir()
    shutil.copy(REPOSITORY / "kernels" / "__init__.py", root / "kernels")
    for command in COMMANDS:
        found = shutil.which(command)
        assert found, f"{command} is needed to test setup.sh"
        (programs / command).symlink_to(found)
    sandbox = Sandbox(root, programs, tmp_path / "calls")
    sandbox.program("python3.11", FAKE_PYTHON)
    sandbox.program("df", "#!/usr/bin/env bash\necho Avail\necho 100000\n")
    return sandbox
