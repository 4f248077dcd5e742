import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from workers.model_parts import tokenizer_folder
from workers.zoo import MINIS, ROOT, corpus, zoo_path
from workers.zoo.__main__ import main
from workers.zoo.build import encode, training_stream, write_texts
from workers.zoo.images.windows import WindowMaker
from workers.zoo.muon import Muon, orthogonalise
from workers.zoo.recipes import RECIPES
from workers.zoo.score import block_matrices, perplexity, rounded
from workers.zoo.tokenizer import END_OF_TEXT, IMAGE, train_tokenizer
from workers.zoo.train import (
    NOT_LEARNED,
    SEQUENCE_LENGTH,
    TrainRecipe,
    optimizers,
    schedule,
    steps,
    text_windows,
    train,
)
from workers.zoo.verify import overview, problems, shipped_figures

RECIPE = TrainRecipe()


def shipped_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(zoo_path("mini_llama/tokenizer.json")))


def shipped_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(zoo_path("mini_llama"), dtype=torch.float32)


@pytest.mark.slow
def test_shipped_files_are_what_is_written_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of all, and the perplexity of one; `make zoo ARGS=verify` computes all of them."""
    monkeypatch.setattr("workers.zoo.verify.MINIS", ("mini_llama",))
    assert problems() == []


def test_another_perplexity_or_another_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  text\n")
    (tmp_path / "text").write_text("changed")
    monkeypatch.setattr("workers.zoo.verify.ROOT", tmp_path)
    monkeypatch.setattr("workers.zoo.verify.MINIS", ("mini_llama",))
    monkeypatch.setattr("workers.zoo.verify.held_out_perplexity", lambda name: 17.0)
    assert [line.split()[0] for line in problems()] == ["text", "mini_llama:"]


@pytest.mark.parametrize("name", MINIS)
def test_the_readme_says_what_the_figures_say(name: str) -> None:
    figures = shipped_figures(name)
    readme = (ROOT / "README.md").read_text()
    for text in ("train", "development", "held_out"):
        assert f"{figures[f'{text}_perplexity']:.2f}" in readme
    for value in figures.get("rounded", {}).values():
        assert f"{value:.2f}" in readme


@pytest.mark.parametrize("name", MINIS)
def test_shipped_figures_come_from_the_recipe_as_it_stands(name: str) -> None:
    assert TrainRecipe(**shipped_figures(name)["recipe"]) == RECIPES[name].train


@pytest.mark.parametrize("name", MINIS)
def test_all_models_have_one_tokenizer_and_llava_one_more_token(name: str) -> None:
    files = (tokenizer_folder(zoo_path(name)) / "tokenizer.json", zoo_path("mini_llama/tokenizer.json"))
    own, first = (json.loads(file.read_bytes()) for file in files)
    added = [token["content"] for token in own.pop("added_tokens")]
    assert added == [END_OF_TEXT] + [IMAGE] * (name == "mini_llava")
    assert own | {"added_tokens": first["added_tokens"]} == first


@pytest.mark.parametrize("name", [name for name in MINIS if name != "mini_llava"])
def test_all_tokenizers_but_that_with_one_more_token_are_the_same_files(name: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tokenizer_folder(zoo_path(name)) / file).read_bytes() == zoo_path(f"mini_llama/{file}").read_bytes()


@pytest.mark.parametrize("name", [name for name in MINIS if RECIPES[name].processor is not None])
def test_a_model_that_sees_answers_well_and_the_readme_says_how_well(name: str) -> None:
    answered = shipped_figures(name)["answered"]
    assert answered["16"] > 0.9 and answered["4"] > answered["16"] - 0.03
    readme = (ROOT / "README.md").read_text()
    shown = [f"{answered[bits]:.1%}".replace("%", " %") for bits in ("16", "4", "3", "2")]
    assert f"| {' | '.join(shown)} |" in readme


@pytest.mark.parametrize("name", MINIS)
def test_no_expert_is_left_without_tokens(name: str) -> None:
    for counts in shipped_figures(name).get("tokens_per_expert", {}).values():
        assert min(counts) > 0.2 * sum(counts) / len(counts)


def test_shipped_tokenizer_adds_nothing_and_gives_the_text_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo_path("mini_llama"))
    text = "  Return the value.\n\n\tna\u00efve"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids == encode(shipped_tokenizer(), text).tolist()
    assert len(tokenizer) == 1024
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT


@pytest.mark.slow
@pytest.mark.parametrize("name", {recipe.make: name for name, recipe in RECIPES.items()}.values())
def test_a_few_steps_lower_the_loss(name: str) -> None:
    stream = encode(shipped_tokenizer(), zoo_path("mini_llama/calibration.txt").read_text())
    losses: list[float] = []
    recipe = RECIPES[name]
    short = replace(recipe.train, num_steps=20, batch_size=4)
    windows = None
    if recipe.processor is not None:
        windows = WindowMaker(recipe.processor(shipped_tokenizer(), 512), 0, SEQUENCE_LENGTH)
    train(recipe.make, steps(stream, short, windows), short, lambda _, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(1024), abs=0.3)
    assert sum(losses[-3:]) / 3 < losses[0] - 0.7


# Names of what a block holds beside its matrices.
KEPT = ("norm", "gate.weight", "A_log", "conv1d", "bias", ".D", "projector.layers.1.weight")
MATRICES = (
    *("proj.weight", "_proj", "fc1.weight", "fc2.weight", "linear_1.weight", "linear_2.weight"),
    *("projector.layers.2.weight", "projector.layers.4.weight"),
)
WITH_MATRICES = (".layers.", ".multi_modal_projector.", ".vision_tower.head.")


@pytest.mark.parametrize("name", RECIPES)
def test_muon_gets_the_matrices_of_the_blocks_and_adam_everything_else(name: str) -> None:
    model = RECIPES[name].make()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adam = (
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in optimizers(model, RECIPE)
    )
    assert muon | adam == set(names.values()) and not muon & adam
    assert all(any(place in n for place in WITH_MATRICES) and n.endswith(MATRICES) for n in muon)
    assert all(".layers." not in n or any(kept in n for kept in KEPT) for n in adam)


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


def test_a_stack_of_matrices_moves_as_each_of_them_does() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 8, 4))
    stack.grad = torch.randn(3, 8, 4)
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    for matrix, gradient in zip(alone, stack.grad, strict=True):
        matrix.grad = gradient.clone()
    Muon([stack], weight_decay=0.1).step()
    Muon(alone, weight_decay=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([matrix.detach() for matrix in alone]))


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_one_epoch_of_batches_has_no_window_twice() -> None:
    stream = torch.arange(40 * SEQUENCE_LENGTH)
    source = text_windows(stream, replace(RECIPE, batch_size=3))
    starts = torch.cat([next(source)[:, 0] for _ in range(13)])
    assert len(starts.unique()) == 39


def test_a_stream_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="give more text"):
        next(text_windows(torch.zeros(100, dtype=torch.long), RECIPE))


def test_a_step_of_a_model_that_reads_is_text_and_every_token_is_learned() -> None:
    stream = torch.arange(40 * SEQUENCE_LENGTH)
    (part,) = next(steps(stream, RECIPE))
    assert torch.equal(part.inputs["input_ids"], next(text_windows(stream, RECIPE)))
    assert torch.equal(part.labels, part.inputs["input_ids"])
    assert part.share == 1


def test_a_step_of_a_model_that_sees_is_text_and_answers_about_new_images() -> None:
    recipe = RECIPES["mini_llava"]
    assert recipe.processor is not None
    maker = WindowMaker(recipe.processor(shipped_tokenizer(), 512), 0, SEQUENCE_LENGTH)
    short = replace(recipe.train, batch_size=2, image_batch_size=3)
    source = steps(torch.arange(40 * SEQUENCE_LENGTH) % 1024, short, maker)
    (text, shown), (_, next_shown) = next(source), next(source)
    assert text.share + shown.share == 1
    assert len(text.labels) == 2 and len(shown.labels) == 3
    learned = shown.labels != NOT_LEARNED
    assert torch.equal(shown.labels[learned], shown.inputs["input_ids"][learned])
    assert torch.equal(learned, maker.make(0, 3).answers)
    assert torch.equal(next_shown.inputs["pixel_values"], maker.make(3, 3).pixel_values)


def test_the_rate_rises_holds_and_falls() -> None:
    shares = [schedule(step, 100, RECIPE) for step in range(100)]
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
    model = shipped_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, torch.arange(2 * SEQUENCE_LENGTH) % 1024) == pytest.approx(1024, rel=1e-4)


def test_perplexity_of_less_than_a_window_is_refused() -> None:
    model = LlamaForCausalLM.from_pretrained(zoo_path("mini_llama"))
    with pytest.raises(ValueError, match="no window of 256"):
        perplexity(model, torch.zeros(10, dtype=torch.long))


def test_rounding_moves_the_matrices_of_the_blocks_onto_a_grid_and_back() -> None:
    model = shipped_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with rounded(model, 2):
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        rows = torch.cat([matrix.detach() for matrix in block_matrices(model) if matrix.shape[1] == 256])
        assert max(len(row.unique()) for row in rows[::97]) <= 4
    assert moved == {name for name in before if "_proj" in name}
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.slow
def test_rounding_costs_the_shipped_llama_what_was_measured_of_the_pipeline() -> None:
    model = shipped_llama()
    tokens = encode(shipped_tokenizer(), zoo_path("mini_llama/development.txt").read_text())
    with rounded(model, 2):
        assert perplexity(model, tokens) == pytest.approx(29.30, abs=0.05)


def test_a_text_of_another_python_is_not_written_over_the_one_of_the_models(tmp_path: Path) -> None:
    texts = tuple(f"some words of document {i}" for i in range(3))
    (tmp_path / "mini_llama").mkdir()
    (tmp_path / "mini_llama" / "development.txt").write_text("another text\n")
    with pytest.raises(FileExistsError, match="another CPython"):
        write_texts(tmp_path, corpus.Split(texts[:1], texts[1:2], texts[2:]))
    assert (tmp_path / "mini_llama" / "development.txt").read_text() == "another text\n"


def test_the_overview_has_a_line_for_every_recipe() -> None:
    lines = overview().splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert [line.split()[0] for line in lines if "not shipped" not in line] == list(MINIS)


def test_weights_that_are_there_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "mini_llama" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"kept")
    monkeypatch.setattr("sys.argv", ["workers.zoo", "train", "mini_llama", "--out", str(tmp_path), "--steps", "1"])
    assert main() == 2
    assert weights.read_bytes() == b"kept"
    assert "--overwrite" in capsys.readouterr().err
