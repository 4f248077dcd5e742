"""What several test files share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

SHARED_VARIABLE = "PTQ_BENCH_SHARED"
REQUIRE_SHARED_VARIABLE = "PTQ_BENCH_REQUIRE_SHARED"

settings.register_profile("ptq-bench", deadline=None)  # how long an example takes says more of the machine than of it
settings.load_profile("ptq-bench")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real models and texts that lies beside the repository and is not part of it."""
    beside = Path(__file__).parents[2] / "shared"
    directory = Path(os.environ.get(SHARED_VARIABLE, beside))
    if directory.is_dir():
        return directory
    reason = f"no directory {directory}; set {SHARED_VARIABLE} to where the real models and texts are"
    if os.environ.get(REQUIRE_SHARED_VARIABLE) == "1":
        pytest.fail(reason)
    pytest.skip(reason)
