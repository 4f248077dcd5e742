"""The harness over our evaluators, against its own `hf` backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conf.errors import ConfigError
from tests.workers.local_task import read_items, write_task
from tests.workers.test_canary import ShiftedEvaluator
from workers.errors import BadInputError, NumericalError
from workers.evaluator import TokenScores
from workers.harness import HarnessModel, check_tasks, run_tasks
from workers.task_files import TaskFile, harness_task
from workers.transformers_evaluator import TransformersEvaluator
from workers.zoo import zoo_path

CONTEXT = 128
TOLERANCE = 1e-4  # nats, for a sum over an answer


class RecordingEvaluator(ShiftedEvaluator):
    """Every token has log-probability -1 / its id and is greedy when its id is even; remembers what it was asked."""

    def __init__(self, max_length: int = CONTEXT, answers: Sequence[int] = ()) -> None:
        super().__init__(0.0)
        self.max_length = max_length
        self.answers = list(answers)
        self.scored: list[list[int]] = []
        self.generated: list[tuple[list[int], int]] = []

    def score(self, prompts: Sequence[Sequence[int]]) -> list[TokenScores]:
        self.scored += [list(p) for p in prompts]
        return [TokenScores(-1.0 / np.array(p[1:], dtype=np.float64), np.array(p[1:]) % 2 == 0) for p in prompts]

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """`answers`, continued where the prompt has them already."""
        self.generated += [(list(p), max_new_tokens) for p in prompts]
        done = [
            next(n for n in range(len(self.answers), -1, -1) if p[-n:] == self.answers[:n] or n == 0) for p in prompts
        ]
        return [self.answers[n : n + max_new_tokens] for n in done]


@pytest.fixture(scope="module")
def model(shared: Path) -> Path:
    return shared / "models" / "mini_reference"


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return loaded


@pytest.fixture(scope="module")
def ours(model: Path, tokenizer: PreTrainedTokenizerBase) -> HarnessModel:
    evaluator = TransformersEvaluator(device="cpu")
    evaluator.load(model, "float32", None, CONTEXT)
    return HarnessModel(evaluator, tokenizer)


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    """Its length counts what the model reads, ours what it scores: one token more."""
    return HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=4, max_length=CONTEXT - 1)


def instance(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_arc_easy_has_the_log_likelihoods_of_the_hf_backend(
    shared: Path, tmp_path: Path, ours: HarnessModel, theirs: Any
) -> None:
    write_task(tmp_path, "local_arc", read_items(shared / "data" / "tasks" / "arc_easy.jsonl", 20))
    task = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["local_arc"])["tasks"]["local_arc"]
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests()
    found, expected = ours.loglikelihood(task.instances), theirs.loglikelihood(task.instances)
    assert len(found) >= 60
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=TOLERANCE)
    assert [f[1] for f in found] == [e[1] for e in expected]


def test_awkward_pairs_have_the_log_likelihoods_of_the_hf_backend(ours: HarnessModel, theirs: Any) -> None:
    pairs = [("", "a text without context"), ("trailing spaces  ", "move"), ("x" * 3000, " is cut on the left")]
    requests = [instance("loglikelihood", *pair) for pair in pairs]
    expected = theirs.loglikelihood(requests)
    np.testing.assert_allclose([f[0] for f in ours.loglikelihood(requests)], [e[0] for e in expected], atol=TOLERANCE)


def test_rolling_log_likelihoods_are_those_of_the_hf_backend(model: Path, ours: HarnessModel, theirs: Any) -> None:
    text = (model / "held.txt").read_text()
    requests = [instance("loglikelihood_rolling", part) for part in (text[:1500], "short", text[2000:2600])]
    expected = theirs.loglikelihood_rolling(requests)
    np.testing.assert_allclose(ours.loglikelihood_rolling(requests), expected, atol=1e-3)  # sums over 500 tokens


def test_generations_are_those_of_the_hf_backend(ours: HarnessModel, theirs: Any) -> None:
    arguments = {"until": ["\n\n"], "max_gen_toks": 70, "do_sample": False}
    requests = [instance("generate_until", prompt, dict(arguments)) for prompt in ("The function ", "def f(x):")]
    assert ours.generate_until(requests) == theirs.generate_until(requests)


# --- what the model is asked, with an evaluator whose answers are known ----------------------------------------------


def test_a_log_likelihood_sums_the_answer_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    evaluator = RecordingEvaluator()
    model = HarnessModel(evaluator, tokenizer)
    results = model._loglikelihood_tokens([(None, [3, 5], [2, 4]), (None, [3], [2, 7])])
    assert [logprob for logprob, _ in results] == pytest.approx([-0.75, -0.5 - 1 / 7])
    assert [greedy for _, greedy in results] == [True, False]
    assert evaluator.scored == [[3, 5, 2, 4], [3, 2, 7]]


def test_what_exceeds_the_context_loses_its_left_end(tokenizer: PreTrainedTokenizerBase) -> None:
    evaluator = RecordingEvaluator(max_length=4)
    HarnessModel(evaluator, tokenizer)._loglikelihood_tokens([(None, [1, 2, 3, 4, 5], [6, 7])])
    assert evaluator.scored == [[4, 5, 6, 7]]


@pytest.mark.parametrize("answer", [[], [1, 2, 3, 4]])
def test_an_answer_that_cannot_be_scored_is_refused(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> None:
    model = HarnessModel(RecordingEvaluator(max_length=4), tokenizer)
    with pytest.raises(BadInputError, match=f"answer of {len(answer)} tokens"):
        model._loglikelihood_tokens([(None, [9], answer)])


def test_a_nan_fails_the_cell(tokenizer: PreTrainedTokenizerBase) -> None:
    evaluator = ShiftedEvaluator(float("nan"))
    with pytest.raises(NumericalError, match="NaN"):
        HarnessModel(evaluator, tokenizer)._loglikelihood_tokens([(None, [1], [2])])


def test_a_bos_in_the_text_is_not_doubled(tokenizer: PreTrainedTokenizerBase) -> None:
    model = HarnessModel(RecordingEvaluator(), tokenizer)
    bos = tokenizer.decode(model.prefix_token_id)
    assert model.tok_encode(f"{bos}word").count(model.prefix_token_id) == 1


def test_generation_stops_at_the_first_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    answers = tokenizer("four is the answer. Next question", add_special_tokens=False)["input_ids"]
    evaluator = RecordingEvaluator(max_length=2048, answers=answers * 40)
    arguments = {"until": ["."], "max_gen_toks": 400}
    (text,) = HarnessModel(evaluator, tokenizer).generate_until([instance("generate_until", "2 + 2", arguments)])
    assert text == "four is the answer"
    assert len(evaluator.generated) == 1  # it did not go on to 400 tokens


def test_generation_goes_on_until_it_has_all_its_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    answers = list(range(300, 300 + 150))
    evaluator = RecordingEvaluator(max_length=2048, answers=answers)
    arguments = {"until": ["never said"], "max_gen_toks": 150}
    (text,) = HarnessModel(evaluator, tokenizer).generate_until([instance("generate_until", "2 + 2", arguments)])
    assert text == tokenizer.decode(answers)
    assert [new for _, new in evaluator.generated] == [64, 64, 22]


def test_sampling_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    arguments = {"until": ["."], "temperature": 0.7, "do_sample": True}
    with pytest.raises(BadInputError, match="asks for sampling"):
        HarnessModel(RecordingEvaluator(), tokenizer).generate_until([instance("generate_until", "a", arguments)])


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_every_metric_gets_a_name_a_size_and_a_standard_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    items = [{"query": f"{i}?", "choices": ["a", "bb", "ccc"], "gold": i % 3} for i in range(12)]
    write_task(tmp_path, "made_up", items)
    metrics = run_tasks(RecordingEvaluator(), tokenizer, ["made_up"], tmp_path, limit=9)
    assert sorted(m.name for m in metrics) == ["made_up.acc", "made_up.acc_norm"]
    for metric in metrics:
        assert metric.num_examples == 9 and metric.unit == "fraction"
        assert metric.value == pytest.approx(1 / 3)  # the same answer every time, and each is right once in three
        assert metric.stderr == pytest.approx((2 / 9 / 8) ** 0.5)


def test_a_named_filter_stays_in_the_name(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "data.jsonl").write_text('{"q": "2+2", "a": "4"}\n{"q": "2+3", "a": "5"}\n')
    (tmp_path / "sums.yaml").write_text(f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}, cache_dir: {tmp_path}/cache}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}="
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
filter_list:
  - {{name: strict-match, filter: [{{function: take_first}}]}}
""")
    four = tokenizer("4", add_special_tokens=False)["input_ids"]
    metrics = run_tasks(RecordingEvaluator(answers=four), tokenizer, ["sums"], tmp_path, limit=None)
    assert [(m.name, m.value, m.num_examples) for m in metrics] == [("sums.exact_match_strict-match", 0.5, 2)]


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_names(tmp_path: Path) -> None:
    write_task(tmp_path, "made_up", [{"query": "", "choices": ["a"], "gold": 0}])
    check_tasks(["made_up", "arc_easy"], tmp_path)
    with pytest.raises(ConfigError, match=r"no task `arc_esy` in .* and the harness; did you mean .*arc_easy"):
        check_tasks(["arc_esy"], tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task: x\n  bad: [", "x.yaml is not YAML.*line 2"),
        ("- a\n", "x.yaml is no task of lm-evaluation-harness"),
        ("", "x.yaml is no task of lm-evaluation-harness"),
        ("task: 3\n", "x.yaml: `task: 3` is no name; quote it"),
    ],
)
def test_a_file_that_is_no_task_is_refused_before_a_cell_starts(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        check_tasks(["x"], tmp_path)


@pytest.mark.parametrize(
    ("items", "change", "said"),
    [
        ([{"query": "a", "gold": 0}], ("", ""), "malformed node"),
        ([], ("", ""), "StopIteration"),
        ([{"query": "a", "choices": ["b"], "gold": 0}], ("multiple_choice", "nope"), "invalid output_type 'nope'"),
        ([{"query": "a", "choices": ["b"], "gold": 0}], ("test_split: test", "test_split: other"), "'other'"),
    ],
)
def test_a_task_that_the_harness_cannot_use_is_bad_input(
    items: list[dict[str, Any]], change: tuple[str, str], said: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    write_task(tmp_path, "made_up", items)
    (file,) = tmp_path.glob("*.yaml")
    file.write_text(file.read_text().replace(*change) if change[0] else file.read_text())
    with pytest.raises(BadInputError, match=f"cannot use one of the tasks made_up .*{said}.*; check the YAML"):
        run_tasks(RecordingEvaluator(), tokenizer, ["made_up"], tmp_path, limit=None)


@pytest.mark.slow
def test_a_task_of_ones_own_comes_before_the_harnesss_of_that_name(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where another task makes the harness read its own."""
    items = [{"context": "a b", "continuation": "c"}] * 3
    own = harness_task("arc_easy", TaskFile("continuation", "{{context}}", tuple(items)))
    named = zoo_path("tasks")
    metrics = run_tasks(
        RecordingEvaluator(), tokenizer, ["arc_easy", "mini_last_word"], named, limit=2, own={"arc_easy": own}
    )
    names = ["arc_easy.acc", "arc_easy.perplexity", "mini_last_word.acc", "mini_last_word.perplexity"]
    assert sorted(metric.name for metric in metrics) == names


def test_a_failure_of_the_engine_is_not_blamed_on_a_task(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: object) -> None:
        raise KeyError("the engine")

    monkeypatch.setattr(RecordingEvaluator, "score", die)
    write_task(tmp_path, "made_up", [{"query": "a", "choices": ["b", "c"], "gold": 0}])
    with pytest.raises(KeyError, match="the engine"):
        run_tasks(RecordingEvaluator(), tokenizer, ["made_up"], tmp_path, limit=None)
