"""Where continuous integration has the directory of real models, a test that uses it may not skip for want of it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_want_of_the_shared_directory_skips_unless_it_is_required(tmp_path: Path, required: str, outcome: str) -> None:
    (tmp_path / "conftest.py").write_text((REPOSITORY / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("def test_it(shared):\n    pass\n")
    variables = {"PTQ_BENCH_SHARED": str(tmp_path / "none"), "PTQ_BENCH_REQUIRE_SHARED": required}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
    )
    assert outcome in run.stdout
