"""Train a mini model: windows of one token stream, Muon for the matrices of the blocks, AdamW for everything else."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from workers.models.selective_scan import linear_scan
from workers.zoo.muon import Muon
from workers.zoo.routing import balance_loss, recorded

SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class TrainRecipe:
    """Numbers of one training run. Rates are the peak; they warm up linearly, hold, then fall linearly to zero.

    head_rate: of the head and of whatever is neither a block's matrix, the embedding nor a norm. balance: how much the
    load of the experts counts beside the loss in nats. products: dtype of the matrix products; everything else is
    float32.
    """

    num_steps: int = 900
    batch_size: int = 16
    seed: int = 0
    hidden_rate: float = 0.02
    embedding_rate: float = 1e-2
    head_rate: float = 4e-3
    weight_decay: float = 0.3
    warmup_share: float = 0.03
    decay_share: float = 0.6
    balance: float = 0.0
    products: str = "bfloat16"


def next_token_loss(model: Any, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of tokens 2..length. windows: [batch, length] int64 -> scalar float32."""
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def schedule(step: int, recipe: TrainRecipe) -> float:
    """Share of the peak rate at `step` (0-based): linear warm-up, plateau, linear decay to nearly zero."""
    warmup = max(1, round(recipe.warmup_share * recipe.num_steps))
    decay = max(1, round(recipe.decay_share * recipe.num_steps))
    return min(1.0, (step + 1) / warmup, (recipe.num_steps - step) / decay)


def batches(tokens: Tensor, recipe: TrainRecipe) -> Iterator[Tensor]:
    """Endless batches [batch_size, SEQUENCE_LENGTH]; each epoch cuts the stream at a new offset and shuffles windows.

    Raises ValueError when the stream is shorter than one batch and one window.
    """
    if len(tokens) < (recipe.batch_size + 1) * SEQUENCE_LENGTH:
        raise ValueError(
            f"training stream has {len(tokens)} tokens; needs {(recipe.batch_size + 1) * SEQUENCE_LENGTH}: "
            "give more text or a smaller batch_size"
        )
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        offset = int(torch.randint(SEQUENCE_LENGTH, (1,), generator=generator))
        num_windows = (len(tokens) - offset) // SEQUENCE_LENGTH
        windows = tokens[offset : offset + num_windows * SEQUENCE_LENGTH].view(num_windows, SEQUENCE_LENGTH)
        order = torch.randperm(num_windows, generator=generator)
        yield from (part for part in windows[order].split(recipe.batch_size) if len(part) == recipe.batch_size)


def block_matrices(model: Any) -> list[Tensor]:
    """Weights of the linears inside the blocks [out, in], and experts where they are stored as one [n, out, in]."""
    head = model.get_output_embeddings()
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return linears + [p for m in model.modules() if isinstance(m, MixtralExperts) for p in m.parameters()]


def optimizers(model: Any, recipe: TrainRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW without decay for everything else."""
    hidden = block_matrices(model)
    embedding = [*model.get_input_embeddings().parameters()]
    embedding += [p for name, p in model.named_parameters() if name.endswith("norm.weight")]
    seen = {id(p) for p in [*hidden, *embedding]}
    groups = [
        {"params": embedding, "lr": recipe.embedding_rate},
        {"params": [p for p in model.parameters() if id(p) not in seen], "lr": recipe.head_rate},
    ]
    return [
        Muon(hidden, lr=recipe.hidden_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(make: Callable[[], Any], tokens: Tensor, recipe: TrainRecipe, report: Callable[[int, float], None]) -> Any:
    """A model trained on one token stream [n] int64, float32 weights; `report(step, loss)` is called after each step.

    make: gives a Transformers model with random weights.
    """
    torch.manual_seed(recipe.seed)
    model = make()
    model.train()
    optims = optimizers(model, recipe)
    peaks = [[group["lr"] for group in optim.param_groups] for optim in optims]
    bfloat16 = recipe.products == "bfloat16"
    for step, windows in enumerate(itertools.islice(batches(tokens, recipe), recipe.num_steps)):
        for optim, rates in zip(optims, peaks, strict=True):
            for group, peak in zip(optim.param_groups, rates, strict=True):
                group["lr"] = peak * schedule(step, recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), linear_scan(), recorded(model) as logits:
            loss = next_token_loss(model, windows)
        (loss + recipe.balance * balance_loss(model, logits)).backward()
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        report(step, loss.item())
    model.eval()
    return model
