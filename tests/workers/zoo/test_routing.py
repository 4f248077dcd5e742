from typing import Any

import pytest
import torch

from workers.zoo.recipes import RECIPES
from workers.zoo.routing import balance_loss, recorded, routers, tokens_per_expert

MIXTURES = {"mini_mixtral": (4, 8, 2), "mini_deepseek_moe": (3, 16, 4)}


def made(name: str) -> Any:
    torch.manual_seed(0)
    return RECIPES[name].make().eval()


@pytest.mark.parametrize("name", MIXTURES)
def test_each_block_with_experts_has_a_router(name: str) -> None:
    model = made(name)
    blocks, num_experts, top_k = MIXTURES[name]
    assert len(routers(model)) == blocks
    assert {(len(router.weight), router.top_k) for router in routers(model).values()} == {(num_experts, top_k)}


@pytest.mark.parametrize("name", MIXTURES)
def test_every_token_is_counted_once_for_each_of_its_experts(name: str) -> None:
    blocks, num_experts, top_k = MIXTURES[name]
    counts = tokens_per_expert(made(name), torch.randint(0, 1024, (3, 20)))
    assert len(counts) == blocks
    assert all(len(row) == num_experts and sum(row) == 3 * 20 * top_k for row in counts.values())


@pytest.mark.parametrize("name", MIXTURES)
def test_the_balance_loss_is_one_when_even_and_largest_when_the_same_experts_get_everything(name: str) -> None:
    _, num_experts, top_k = MIXTURES[name]
    model = made(name)
    even = torch.eye(num_experts).repeat(50, 1) * 1e-3 + torch.stack(
        [torch.roll(torch.arange(num_experts) < top_k, shift) for shift in range(num_experts)]
    ).repeat(50, 1)
    assert balance_loss(model, {"gate": [even]}) == pytest.approx(1, abs=0.01)
    collapsed = (torch.arange(num_experts) < top_k).float().repeat(50, 1) * 100
    assert balance_loss(model, {"gate": [collapsed]}) == pytest.approx(num_experts / top_k, rel=1e-4)


def test_one_block_does_not_make_up_for_another() -> None:
    """Two routers that send everything to different experts: even in sum, and as uneven as can be."""
    model = made("mini_mixtral")
    choices = [torch.isin(torch.arange(8), torch.tensor(chosen)) for chosen in ([0, 1], [2, 3], [4, 5], [6, 7])]
    logits = {f"gate {i}": [choice.float().repeat(50, 1) * 100] for i, choice in enumerate(choices)}
    assert balance_loss(model, logits) == pytest.approx(8 / 2, rel=1e-4)


def test_the_balance_loss_reaches_every_router() -> None:
    model = made("mini_deepseek_moe")
    with recorded(model) as logits:
        model(torch.randint(0, 1024, (2, 20)))
    balance_loss(model, logits).backward()
    assert all(router.weight.grad is not None and router.weight.grad.any() for router in routers(model).values())


def test_a_dense_model_has_nothing_to_balance() -> None:
    model = made("mini_llama")
    with recorded(model) as logits:
        model(torch.randint(0, 1024, (1, 4)))
    assert balance_loss(model, logits) == 0
    assert tokens_per_expert(model, torch.randint(0, 1024, (1, 4))) == {}


def test_nothing_is_recorded_afterwards() -> None:
    model = made("mini_mixtral")
    with recorded(model) as logits:
        pass
    model(torch.randint(0, 1024, (1, 4)))
    assert not any(logits.values())
