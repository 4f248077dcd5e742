"""Where things lie in a storage, which the driver names as the workers do. Imports nothing.

storage: the root that every node sees. orchestrator/storage.py has what only the driver puts there.
"""

from pathlib import Path

MANIFEST = "manifest.json"  # of a checkpoint, which it finishes


def checkpoint_directory(storage: Path, quantize_key: str) -> Path:
    """Where a finished checkpoint lies."""
    return storage / "checkpoints" / quantize_key


def partial_directory(storage: Path, quantize_key: str) -> Path:
    """Where an unfinished one grows."""
    return storage / "checkpoints" / f".partial-{quantize_key}"


def claim_file(storage: Path, quantize_key: str) -> Path:
    """The file that is locked while a checkpoint is made."""
    return storage / "leases" / f"{quantize_key}.lock"


def statistics_directory(storage: Path) -> Path:
    """Where statistics lie that cells share; there is nothing before the first is kept."""
    return storage / "statistics"


def statistics_lock(storage: Path) -> Path:
    """The file that is locked while statistics are written or removed."""
    return statistics_directory(storage) / ".lock"
