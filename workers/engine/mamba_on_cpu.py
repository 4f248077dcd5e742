"""Mamba 1 where vLLM was built without its operators: the CPU build of vLLM 0.32.

It has no selective scan, which reads prompts; its step for one more token takes the shapes of Mamba 2 alone, and gives
wrong states where it is handed Mamba 1's in these; it packs bfloat16 convolutions into what the block cannot read.
Where the scan is there (a GPU, a later version), nothing is replaced. Gu and Dao 2023 (arXiv 2312.00752), equations 2.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops
from vllm.model_executor.layers.mamba import mamba_mixer

from workers.models.selective_scan import chunk_states

# Numbers in the states of the steps that are taken at a time: 1 MiB, what a core's second cache holds. With 16 steps of
# eight sequences a prompt takes 1.3 times as long.
CACHED = 2**18


def supply_operators() -> None:
    """Give vLLM's Mamba blocks what this build lacks, in this process; may be called again."""
    if hasattr(torch.ops._C, "selective_scan_fwd"):
        return
    vars(mamba_mixer).update(selective_scan_fn=selective_scan, selective_state_update=next_states)
    vars(_custom_ops).pop("causal_conv1d_weight_pack", None)  # vLLM asks whether it is there, and goes without


def next_states(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    z: Tensor,
    state_batch_indices: Tensor,
    out: Tensor,
    **unused: Any,
) -> None:
    """One more token of each sequence, as `selective_scan` would have it; into out, like x.

    x, dt, z: [sequences, channels]; B, C: [sequences, states]; state [slots, channels, states]: those at
    state_batch_indices [sequences, 1] move on by one.
    """
    slots = state_batch_indices.flatten()
    step = torch.nn.functional.softplus(dt.float() + dt_bias)
    drive = (step * x)[..., None] * B.float()[:, None, :]
    states = state[slots].float() * torch.exp(step[..., None] * A) + drive
    state[slots] = states.to(state.dtype)
    scanned = (states @ C.float()[..., None]).squeeze(-1) + D * x
    out.copy_(scanned * torch.nn.functional.silu(z.float()))


def selective_scan(
    u: Tensor,
    ssm_states: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    has_initial_state: Tensor,
    **unused: Any,
) -> Tensor:
    """SiLU(z) (scan(u, softplus(delta + bias), A, B, C) + D u) of sequences that lie one after the other.

    u, delta, z: [channels, tokens]; B, C: [states, tokens]; A: [channels, states] and D, delta_bias: [channels], all
    float32; query_start_loc: [sequences + 1] int, where each begins. ssm_states [slots, channels, states]: those at
    cache_indices [sequences] are what a sequence begins with where has_initial_state [sequences], and get what it ends
    with. Computed in float32, sequences of one length together. The names are vLLM's.
    """
    assert delta_softplus, "vLLM's Mamba always asks for softplus"
    step = torch.nn.functional.softplus(delta.float() + delta_bias[:, None])
    times = [part.float().T for part in (step * u, step, B, C)]
    scanned = torch.empty_like(times[0])
    starts = torch.where(has_initial_state[:, None, None], ssm_states[cache_indices].float(), 0.0)
    for length, rows in _by_length(query_start_loc).items():
        tokens = query_start_loc[rows] + torch.arange(length)[:, None]
        outputs, ends = _scan([part[tokens] for part in times], A, starts[rows])
        scanned[tokens] = outputs
        ssm_states[cache_indices[rows]] = ends.to(ssm_states.dtype)
    gate = torch.nn.functional.silu(z.float())
    return ((scanned.T + D[:, None] * u) * gate).to(u.dtype)


def _by_length(query_start_loc: Tensor) -> dict[int, list[int]]:
    rows = defaultdict(list)
    for row, length in enumerate(query_start_loc.diff().tolist()):
        rows[length].append(row)
    return rows


def _scan(times: list[Tensor], A: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [length, sequences, channels] and the last states [sequences, channels, states].

    times: drive, delta [length, sequences, channels], B, C [length, sequences, states].
    """
    outputs = []
    steps = max(CACHED // start.numel(), 1)
    for drive, delta, B, C in zip(*(part.split(steps) for part in times), strict=True):
        _, states = chunk_states(drive, delta, A, B, start)
        outputs.append((states @ C[..., None]).squeeze(-1))
        start = states[-1].clone()  # not a view, which would keep the whole chunk
    return torch.cat(outputs), start
