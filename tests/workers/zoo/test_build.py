import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from workers.zoo import ROOT, zoo_path
from workers.zoo.__main__ import main
from workers.zoo.muon import Muon, orthogonalise
from workers.zoo.recipe import encode, training_stream
from workers.zoo.score import perplexity
from workers.zoo.tokenizer import END_OF_TEXT, train_tokenizer
from workers.zoo.train import SEQUENCE_LENGTH, TrainRecipe, batches, schedule, train

RECIPE = TrainRecipe()


def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(zoo_path("mini_llama/tokenizer.json")))


@pytest.mark.slow
def test_shipped_held_out_perplexity_is_the_one_reported() -> None:
    model = LlamaForCausalLM.from_pretrained(zoo_path("mini_llama"), dtype=torch.float32)
    tokens = encode(shipped_tokenizer(), zoo_path("mini_llama/held_out.txt").read_text())
    reported = json.loads(zoo_path("mini_llama/figures.json").read_text())["held_out_perplexity"]
    assert perplexity(model, tokens) == pytest.approx(reported, abs=0.01)
    assert f"{reported:.2f}" in (ROOT / "README.md").read_text()


def test_shipped_figures_come_from_the_recipe_as_it_stands() -> None:
    recipe = json.loads(zoo_path("mini_llama/figures.json").read_text())["recipe"]
    assert TrainRecipe(**recipe) == RECIPE


def test_shipped_tokenizer_adds_nothing_and_gives_the_text_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo_path("mini_llama"))
    text = "  Return the value.\n\n\tna\u00efve"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids == encode(shipped_tokenizer(), text).tolist()
    assert len(tokenizer) == 1024
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT


@pytest.mark.slow
def test_a_few_steps_lower_the_loss() -> None:
    stream = encode(shipped_tokenizer(), zoo_path("mini_llama/calibration.txt").read_text())
    losses: list[float] = []
    train(stream, replace(RECIPE, num_steps=20, batch_size=4), lambda _, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(1024), abs=0.3)
    assert sum(losses[-3:]) / 3 < losses[0] - 1


def test_orthogonalise_keeps_directions_and_flattens_singular_values() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(24, 16))
    right, _ = torch.linalg.qr(torch.randn(16, 16))
    flat = orthogonalise((left @ torch.linspace(1.0, 4.0, 16).diag() @ right.T)[None])[0]
    # The quintic of Jordan et al. leaves singular values within about [0.7, 1.2]; bfloat16 adds under 0.05.
    inside = left.T @ flat @ right
    assert inside.diagonal().min() > 0.65 and inside.diagonal().max() < 1.25
    assert (inside - inside.diagonal().diag()).abs().max() < 0.05


def test_a_muon_step_has_the_length_of_the_rate_whatever_the_gradient() -> None:
    steps = []
    for size in (1e-3, 1e3):
        matrix = torch.nn.Parameter(torch.zeros(8, 4))
        matrix.grad = size * torch.eye(8, 4)
        Muon([matrix], lr=0.1).step()
        steps.append(matrix.detach().clone())
    torch.testing.assert_close(steps[0], steps[1])
    # sqrt(8 / 4) scales a tall matrix; its singular values are those of orthogonalise.
    assert 0.1 * 0.65 < steps[0].norm(2) / 4**0.5 / 2**0.5 * -torch.sign(steps[0][0, 0]) < 0.1 * 1.25


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_one_epoch_of_batches_has_no_window_twice() -> None:
    stream = torch.arange(40 * SEQUENCE_LENGTH)
    source = batches(stream, replace(RECIPE, batch_size=3))
    starts = torch.cat([next(source)[:, 0] for _ in range(13)])
    assert len(starts.unique()) == 39


def test_a_stream_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="give more text"):
        next(batches(torch.zeros(100, dtype=torch.long), RECIPE))


def test_the_rate_rises_holds_and_falls() -> None:
    shares = [schedule(step, replace(RECIPE, num_steps=100)) for step in range(100)]
    peak = shares.index(1.0)
    assert shares[:peak] == sorted(shares[:peak])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert shares[-1] < 0.05


def test_documents_are_closed_by_the_end_of_text_token() -> None:
    tokenizer = train_tokenizer(["a few words", "some more words"], vocab_size=260)
    stream = training_stream(tokenizer, ["a few", "words"]).tolist()
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert stream.count(end) == 2 and stream[-1] == end


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary() -> None:
    model = LlamaForCausalLM.from_pretrained(zoo_path("mini_llama"), dtype=torch.float32)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, torch.arange(2 * SEQUENCE_LENGTH) % 1024) == pytest.approx(1024, rel=1e-4)


def test_perplexity_of_less_than_a_window_is_refused() -> None:
    model = LlamaForCausalLM.from_pretrained(zoo_path("mini_llama"))
    with pytest.raises(ValueError, match="no window of 256"):
        perplexity(model, torch.zeros(10, dtype=torch.long))


def test_weights_that_are_there_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "mini_llama" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"kept")
    monkeypatch.setattr("sys.argv", ["workers.zoo", "--out", str(tmp_path), "--steps", "1"])
    assert main() == 2
    assert weights.read_bytes() == b"kept"
    assert "--overwrite" in capsys.readouterr().err
