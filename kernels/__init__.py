"""Operations that every method shares. Imports nothing of the other packages."""

__version__ = "2026.11.0"


def status() -> dict[str, str]:
    """Which version of each operation runs. Torch-free, so that the command line can print it."""
    return {
        "column_rounding": "reference (torch)",
        "coordinate_descent": "reference (torch)",
        "factorization": "reference (torch)",
        "hessian": "reference (torch)",
    }
