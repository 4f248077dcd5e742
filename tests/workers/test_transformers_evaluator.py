"""Transformers as an evaluator: known answers, independence of batches, and checkpoints that are not whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.workers.tiny_models import canary_of, random_prompts, write_llama
from workers.calibration import evaluation_windows
from workers.errors import BadInputError, ParityError
from workers.evaluate import score_perplexity
from workers.transformers_evaluator import TransformersEvaluator


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model"))


def loaded(directory: Path, max_length: int = 64) -> TransformersEvaluator:
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(directory, "float32", None, max_length)
    return evaluator


def test_scores_are_those_of_log_softmax(model: Path) -> None:
    prompt = random_prompts(1, 20)[0]
    (scores,) = loaded(model).score([prompt])
    logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([prompt])).logits[0, :-1]
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(19), torch.tensor(prompt[1:])]
    np.testing.assert_allclose(scores.logprobs, expected.detach().numpy(), atol=1e-5)
    assert scores.is_argmax.tolist() == (logits.argmax(-1) == torch.tensor(prompt[1:])).tolist()


def test_the_greedy_continuation_is_the_arg_max_of_every_step(model: Path) -> None:
    evaluator = loaded(model)
    prompt = random_prompts(1, 10)[0]
    (continuation,) = evaluator.generate([prompt], 8, [])
    (scores,) = evaluator.score([prompt + continuation])
    assert len(continuation) == 8 and scores.is_argmax[9:].all()


def test_a_stop_token_ends_a_continuation_and_is_left_out(model: Path) -> None:
    evaluator = loaded(model)
    prompts = random_prompts(2, 10)
    whole = evaluator.generate(prompts, 8, [])
    stop = whole[0][3]
    stopped = evaluator.generate(prompts, 8, [stop])
    assert stopped[0] == whole[0][: whole[0].index(stop)]
    assert stopped[1] == (whole[1][: whole[1].index(stop)] if stop in whole[1] else whole[1])


def test_21_scores_do_not_depend_on_what_a_prompt_is_batched_with(model: Path) -> None:
    evaluator = loaded(model)
    prompts = [prompt[: 5 + 3 * i] for i, prompt in enumerate(random_prompts(16, 64))]
    together = evaluator.score(prompts)
    for prompt, scores in zip(prompts, together, strict=True):
        (alone,) = evaluator.score([prompt])
        assert len(scores.logprobs) == len(prompt) - 1
        np.testing.assert_allclose(scores.logprobs, alone.logprobs, atol=2e-5)


def test_a_missing_tensor_is_an_error_and_never_random_numbers(tmp_path: Path) -> None:
    file = write_llama(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=r"1 tensors are missing, first `model\.layers\.1\.mlp\.up_proj"):
        loaded(tmp_path)


def test_wrong_weights_are_caught_on_loading(model: Path, tmp_path: Path) -> None:
    canary = canary_of(write_llama(tmp_path, seed=1), random_prompts(8, 32))
    with pytest.raises(ParityError, match="score it with engine=vllm"):
        TransformersEvaluator(device="cpu").load(model, "float32", canary, 32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_weights_pass_in_every_dtype(model: Path, dtype: str) -> None:
    canary = canary_of(model, random_prompts(8, 32))
    result = TransformersEvaluator(device="cpu").load(model, dtype, canary, 32)
    assert result.swap == "fresh" and 0 <= result.canary_difference < 0.1


@pytest.mark.slow
def test_the_stories_model_has_its_published_loss(shared: Path) -> None:
    directory = shared / "models" / "stories260k"
    text = (shared / "data" / "tinystories" / "evaluation.txt").read_text()
    windows = evaluation_windows("text", text, AutoTokenizer.from_pretrained(directory), 256)
    _, mean_nll = score_perplexity(loaded(directory, 256), "stories", windows)
    assert mean_nll.value == pytest.approx(1.526, abs=0.005)


@pytest.mark.slow
def test_the_reference_model_has_its_published_perplexity(shared: Path) -> None:
    directory = shared / "models" / "mini_reference"
    windows = evaluation_windows("tokens", np.load(directory / "tokens_held.npy"), lambda text, verbose: {}, 256)
    perplexity, _ = score_perplexity(loaded(directory, 256), "held", windows)
    assert perplexity.value == pytest.approx(20.88, abs=0.01)
    assert perplexity.num_examples == len(np.load(directory / "tokens_held.npy")) // 256


def test_closing_forgets_the_model(model: Path) -> None:
    evaluator = loaded(model)
    evaluator.close()
    with pytest.raises(AssertionError, match="load a checkpoint first"):
        evaluator.score(random_prompts(1, 4))
