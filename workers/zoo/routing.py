"""What the routers of a mixture of experts decide: kept balanced while training, counted afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func

from workers.models.deepseek_moe import DeepseekRouter

ROUTERS = (MixtralTopKRouter, DeepseekRouter)


def routers(model: nn.Module) -> dict[str, Any]:
    """The routers of a model by name, in the order of the blocks; empty for a dense model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ROUTERS)}


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collects each router's logits [tokens, experts], one tensor per forward pass."""
    logits: dict[str, list[Tensor]] = {name: [] for name in routers(model)}

    def keep(name: str) -> Any:
        return lambda module, arguments, answer: logits[name].append(answer[0])

    handles = [module.register_forward_hook(keep(name)) for name, module in routers(model).items()]
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()


def balance_loss(model: nn.Module, logits: dict[str, list[Tensor]]) -> Tensor:
    """Load-balancing loss of Switch Transformer (Fedus et al. 2022, equations 4 to 6), per choice of a token.

    logits: what `recorded` collected over one forward pass. Scalar, the mean over the routers: 1 when all experts get
    as much as each other, up to experts / top_k when the same few get everything; 0 for a dense model. Each router is
    counted by itself: given all of them, the library adds up experts of one number, so that one which a block never
    uses is made up for in another block.
    """
    if not logits:
        return torch.zeros(())
    router = next(iter(routers(model).values()))
    losses: list[Any] = [
        load_balancing_loss_func((torch.cat(parts).float(),), len(router.weight), router.top_k)
        for parts in logits.values()
    ]
    return torch.as_tensor(torch.stack(losses).mean() / router.top_k)


@torch.no_grad()
def tokens_per_expert(model: Any, windows: Tensor) -> dict[str, list[int]]:
    """How many of the tokens of windows [n, length] each expert of each router gets."""
    with recorded(model) as logits:
        for batch in windows.split(16):
            model(input_ids=batch)
    counts = {}
    for name, router in routers(model).items():
        chosen = torch.cat(logits[name]).topk(router.top_k, dim=1).indices
        counts[name] = chosen.flatten().bincount(minlength=logits[name][0].shape[1]).tolist()
    return counts
