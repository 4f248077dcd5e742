"""Experts of a block as modules with linears of their own, in place of the library's fused three-dimensional weights.

A method quantizes matrices [out, in] by what each is called with, so that every expert is a module that is called with
the tokens routed to it. The numbers are those of the library's own loop, and gradients reach every weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """A SwiGLU: down(act(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self._act = act

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        made: Tensor = self.down_proj(self._act(self.gate_proj(hidden)) * self.up_proj(hidden))
        return made


class Experts(nn.ModuleList):
    """The experts of one block; called as Transformers' fused modules are.

    Each is called once, with all of its tokens, or not at all. sees_all: every expert is called with all tokens, for
    what calibration says of it; the output is the same.
    """

    def __init__(self, experts: list[nn.Module]) -> None:
        super().__init__(experts)
        self.sees_all = False

    @classmethod
    def like(cls, fused: nn.Module) -> "Experts":
        """Of the sizes of a fused module (gate_up_proj [E, 2 I, H], down_proj [E, H, I], act_fn), on its device."""
        down, gate_up, act = fused.down_proj, fused.gate_up_proj, fused.act_fn
        assert isinstance(down, nn.Parameter) and isinstance(gate_up, nn.Parameter) and callable(act)
        count, hidden_size, intermediate_size = down.shape
        assert gate_up.shape == (count, 2 * intermediate_size, hidden_size), f"no SwiGLU: {list(gate_up.shape)}"
        with torch.device(down.device):
            made = [Expert(hidden_size, intermediate_size, act) for _ in range(count)]
        return cls([expert.to(down.dtype) for expert in made])

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden: [tokens, hidden]; top_k_index, top_k_weights: [tokens, k], which experts and how much of each."""
        output = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            tokens, places = torch.where(top_k_index == number)
            if self.sees_all:
                made = expert(hidden)[tokens]
            elif len(tokens):
                made = expert(hidden[tokens])
            else:
                continue
            output.index_add_(0, tokens, (made * top_k_weights[tokens, places, None]).to(output.dtype))
        return output
