"""Train a mini model: windows of one token stream, and of images where the model sees.

Muon for the matrices of the blocks, and of tower and projector; AdamW for everything else.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from workers.models.selective_scan import linear_scan
from workers.zoo.images.windows import WindowMaker
from workers.zoo.muon import Muon
from workers.zoo.routing import balance_loss, recorded

SEQUENCE_LENGTH = 256
NOT_LEARNED = -100


@dataclass(frozen=True)
class TrainRecipe:
    """Numbers of one training run. Rates are the peak; they warm up linearly, hold, then fall linearly to zero.

    head_rate: of the head and of whatever is neither a block's matrix, the embedding nor a norm. balance: how much the
    load of the experts counts beside the loss in nats. products: dtype of the matrix products; everything else is
    float32. sight_steps: how long tower and projector learn to see before. image_batch_size: windows with images in a
    step, beside batch_size windows of text; image_share: how much their answers count, of 1.
    """

    num_steps: int = 900
    batch_size: int = 16
    sight_steps: int = 0
    image_batch_size: int = 0
    image_share: float = 0.5
    seed: int = 0
    hidden_rate: float = 0.02
    embedding_rate: float = 1e-2
    head_rate: float = 4e-3
    weight_decay: float = 0.3
    warmup_share: float = 0.03
    decay_share: float = 0.6
    balance: float = 0.0
    products: str = "bfloat16"


@dataclass(frozen=True)
class Batch:
    """Part of a step. inputs: what the model is called with, `input_ids` [batch, length] int64 among it.

    labels: the same tokens, NOT_LEARNED where they need not be predicted. share: how much its mean loss counts.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    share: float = 1.0

    @classmethod
    def of_text(cls, windows: Tensor, share: float = 1.0) -> "Batch":
        """Every token of windows [batch, length] int64 is learned."""
        return cls({"input_ids": windows}, windows, share)


def next_token_loss(model: Any, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats of the labels among tokens 2..length, a scalar in float32."""
    logits = model(**batch.inputs, use_cache=False).logits[:, :-1].float()
    labels = batch.labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=NOT_LEARNED)


def schedule(step: int, num_steps: int, recipe: TrainRecipe) -> float:
    """Share of the peak rate at `step` (0-based): linear warm-up, plateau, linear decay to nearly zero."""
    warmup = max(1, round(recipe.warmup_share * num_steps))
    decay = max(1, round(recipe.decay_share * num_steps))
    return min(1.0, (step + 1) / warmup, (num_steps - step) / decay)


def set_rates(optims: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every rate to a share of what it was made with."""
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = share * group.setdefault("initial_lr", group["lr"])


def steps(tokens: Tensor, recipe: TrainRecipe, windows: WindowMaker | None = None) -> Iterator[list[Batch]]:
    """Endless steps: text of one stream [n] int64, and answers about images where the model sees some.

    windows: makes those with images; null for a model that reads only. Raises ValueError as `text_windows` does.
    """
    for number, text in enumerate(text_windows(tokens, recipe)):
        if windows is None:
            yield [Batch.of_text(text)]
            continue
        shown = windows.make(number * recipe.image_batch_size, recipe.image_batch_size)
        inputs = {"input_ids": shown.input_ids, "pixel_values": shown.pixel_values}
        labels = shown.input_ids.where(shown.answers, NOT_LEARNED)
        yield [Batch.of_text(text, 1 - recipe.image_share), Batch(inputs, labels, recipe.image_share)]


def text_windows(tokens: Tensor, recipe: TrainRecipe) -> Iterator[Tensor]:
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


def matrices(module: nn.Module) -> list[Tensor]:
    """Weights of the linears of a module [out, in], and experts where they are stored as one [n, out, in]."""
    linears = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    return linears + [p for m in module.modules() if isinstance(m, MixtralExperts) for p in m.parameters()]


def optimizers(model: Any, recipe: TrainRecipe) -> list[torch.optim.Optimizer]:
    """Muon for every matrix but embedding and head, AdamW without decay for everything else."""
    head = model.get_output_embeddings().weight
    hidden = [matrix for matrix in matrices(model) if matrix is not head]
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


def train(
    make: Callable[[], Any],
    batches: Iterable[Sequence[Batch]],
    recipe: TrainRecipe,
    report: Callable[[int, float], None],
) -> Any:
    """A model trained on the first steps of `batches`, float32 weights; `report(step, loss)` is called after each step.

    make: gives a Transformers model with random weights.
    """
    torch.manual_seed(recipe.seed)
    model = make()
    model.train()
    optims = optimizers(model, recipe)
    bfloat16 = recipe.products == "bfloat16"
    for step, parts in enumerate(itertools.islice(batches, recipe.num_steps)):
        set_rates(optims, schedule(step, recipe.num_steps, recipe))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), linear_scan(), recorded(model) as logits:
            loss = torch.stack([part.share * next_token_loss(model, part) for part in parts]).sum()
        (loss + recipe.balance * balance_loss(model, logits)).backward()
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        report(step, loss.item())
    model.eval()
    return model
