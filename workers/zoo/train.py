"""Train the mini LLaMA: windows of one token stream, Muon for hidden matrices, AdamW for embedding, head and norms."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workers.zoo.muon import Muon
from workers.zoo.tokenizer import VOCAB_SIZE

SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class TrainRecipe:
    """Numbers of one training run. Rates are the peak; they warm up linearly, hold, then fall linearly to zero."""

    num_steps: int = 900
    batch_size: int = 16
    seed: int = 0
    hidden_rate: float = 0.02
    embedding_rate: float = 1e-2
    head_rate: float = 4e-3
    weight_decay: float = 0.3
    warmup_share: float = 0.03
    decay_share: float = 0.6


def mini_llama_config() -> LlamaConfig:
    """3.7 million parameters; intermediate_size is no multiple of 128 on purpose, so groups of 128 do not fit all."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def next_token_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of tokens 2..length. windows: [batch, length] int64 -> scalar float32."""
    logits = model(input_ids=windows).logits[:, :-1].float()
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


def optimizers(model: LlamaForCausalLM, recipe: TrainRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside decoder blocks, AdamW for embedding, head and norm weights."""
    hidden = [param for param in model.model.layers.parameters() if param.ndim == 2]
    norms = [param for param in model.parameters() if param.ndim == 1]
    groups = [
        {"params": [*model.model.embed_tokens.parameters(), *norms], "lr": recipe.embedding_rate},
        {"params": list(model.lm_head.parameters()), "lr": recipe.head_rate},
    ]
    return [
        Muon(hidden, lr=recipe.hidden_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(tokens: Tensor, recipe: TrainRecipe, report: Callable[[int, float], None]) -> LlamaForCausalLM:
    """A model trained on one token stream [n] int64, float32 weights; `report(step, loss)` is called after each step.

    Matrix products run in bfloat16 (autocast), everything else in float32.
    """
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(mini_llama_config())
    model.train()
    optims = optimizers(model, recipe)
    peaks = [[group["lr"] for group in optim.param_groups] for optim in optims]
    for step, windows in enumerate(itertools.islice(batches(tokens, recipe), recipe.num_steps)):
        for optim, rates in zip(optims, peaks, strict=True):
            for group, peak in zip(optim.param_groups, rates, strict=True):
                group["lr"] = peak * schedule(step, recipe)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = next_token_loss(model, windows)
        loss.backward()
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        report(step, loss.item())
    model.eval()
    return model
