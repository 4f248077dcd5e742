"""Mamba's selective scan in plain torch, with a backward pass whose time and memory are linear in the length.

Gu and Dao 2023 (arXiv 2312.00752), equations 2 and section 3.2. Without compiled kernels Transformers indexes whole
[batch, channels, length, states] tensors step by step, so that each step's gradient fills all of them: quadratic.
Here one chunk is worked on at a time; only the state at its beginning is kept, and its states are computed again when
gradients come back (as the authors' kernel does).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.mamba import modeling_mamba

# Steps of a chunk: its [chunk, batch, channels, states] tensors are what the backward pass holds at a time.
CHUNK = 16


class _Scan(torch.autograd.Function):
    """h_t = exp(delta_t A) h_{t-1} + drive_t B_t, y_t = h_t C_t, from h = 0; time first.

    drive, delta: [length, batch, channels]; A: [channels, states]; B, C: [length, batch, states] -> y like drive.
    """

    @staticmethod
    def forward(ctx: Any, drive: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        start = drive.new_zeros(drive.shape[1], *A.shape)
        starts, outputs = [], []
        for drive_, delta_, B_, C_ in zip(*(x.split(CHUNK) for x in (drive, delta, B, C)), strict=True):
            starts.append(start)
            _, states = chunk_states(drive_, delta_, A, B_, start)
            outputs.append((states @ C_[..., None]).squeeze(-1))
            start = states[-1].clone()  # not a view, which would keep the whole chunk
        ctx.save_for_backward(drive, delta, A, B, C, torch.stack(starts))
        return torch.cat(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        drive, delta, A, B, C, starts = ctx.saved_tensors
        grad_A = torch.zeros_like(A)
        carry = torch.zeros_like(starts[0])  # of what follows a chunk, with respect to its last state
        parts = []
        chunks = list(zip(*(x.split(CHUNK) for x in (drive, delta, B, C, gradients[0])), starts, strict=True))
        for drive_, delta_, B_, C_, grad_y, start in reversed(chunks):
            decay, states = chunk_states(drive_, delta_, A, B_, start)
            grad = grad_y[..., None] * C_[:, :, None, :]
            grad[-1] += carry
            for t in range(len(grad) - 2, -1, -1):
                grad[t].addcmul_(decay[t + 1], grad[t + 1])
            carry = decay[0] * grad[0]
            grad_C = (grad_y[:, :, None, :] @ states).squeeze(2)
            grad_B = (drive_[:, :, None, :] @ grad).squeeze(2)
            grad_drive = (grad @ B_[..., None]).squeeze(-1)
            exponent = grad.mul_(decay)
            exponent[0] *= start
            exponent[1:] *= states[:-1]
            grad_A += (exponent * delta_[..., None]).sum((0, 1))
            parts.append((grad_drive, exponent.mul_(A).sum(-1), grad_B, grad_C))
        grad_drive, grad_delta, grad_B, grad_C = (torch.cat(part) for part in zip(*reversed(parts), strict=True))
        return grad_drive, grad_delta, grad_A, grad_B, grad_C


def chunk_states(drive: Tensor, delta: Tensor, A: Tensor, B: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Decays exp(delta A) and states, [chunk, batch, channels, states] each; start: the state before the chunk."""
    decay = (delta[..., None] * A).exp_()
    states = drive[..., None] * B[:, :, None, :]
    for t, previous in enumerate([start, *states[:-1]]):
        states[t].addcmul_(decay[t], previous)
    return decay, states


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """SiLU(z) (scan(x, delta, A, B, C) + D x) with delta = softplus(dt + bias).

    hidden_states (x), dt, z: [batch, channels, length]; B, C: [batch, states, length]; A: [channels, states]; D,
    delta_bias: [channels]. Computed in float32, or in float64 where A is. The names are those of Transformers.
    """
    with torch.autocast(hidden_states.device.type, enabled=False):
        x, step, gate, B, C = (part.to(A.dtype) for part in (hidden_states, dt, z, B, C))
        step = step + delta_bias[:, None]
        delta = torch.nn.functional.softplus(step) if delta_softplus else step
        times = [part.permute(2, 0, 1).contiguous() for part in (delta * x, delta, B, C)]
        scanned: Tensor = _Scan.apply(times[0], times[1], A, times[2], times[3])  # type: ignore[no-untyped-call]
        y = scanned.permute(1, 2, 0)
        output: Tensor = (y + D[:, None] * x) * torch.nn.functional.silu(gate)
        return output


@contextmanager
def linear_scan() -> Iterator[None]:
    """Within it Mamba's blocks run `selective_scan`; to generate, which asks for the last state, the library's own."""
    library = modeling_mamba.mamba_selective_scan

    def scan(*arguments: Any, return_last_state: bool = False, **options: Any) -> Any:
        if return_last_state:
            return library(*arguments, return_last_state=True, **options)
        wanted = {name: options[name] for name in ("D", "z", "delta_bias", "delta_softplus")}
        return selective_scan(*arguments, **wanted)

    modeling_mamba.mamba_selective_scan = scan
    try:
        yield
    finally:
        modeling_mamba.mamba_selective_scan = library
