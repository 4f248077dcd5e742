"""What holds for all operations."""

import subprocess
import sys
from pathlib import Path

import torch

import kernels
from kernels.precision import full_float32


def test_every_operation_has_a_status_and_no_other_has() -> None:
    folder = Path(kernels.__file__).parent

    assert set(kernels.status()) == {path.parent.name for path in folder.glob("*/__init__.py")}


def test_status_is_read_without_torch() -> None:
    code = "import sys, kernels; kernels.status(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_precision_is_raised_inside_and_restored_after() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
