"""lm-evaluation-harness as the source of benchmark tasks, over any Evaluator.

Importing this imports the harness (0.7 s, no torch); its index of shipped tasks takes 5 s more and is read only when a
task is not found in the suite's own folder.
"""

import difflib
import functools
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from conf.errors import ConfigError
from workers.api import Metric
from workers.errors import BadInputError, CellError, NumericalError
from workers.evaluator import Evaluator, ImagePrompt, ShowsImages
from workers.hub import causes, is_outage, is_refusal

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

# The harness's own default for drawing few-shot examples. Constant, so that a cell's seed never changes its questions.
FEWSHOT_SEED = 1234
BOOTSTRAP_DRAWS = 1000  # for metrics without a closed-form standard error
MAX_NEW_TOKENS = 256  # the harness's default for tasks that do not say
REQUESTS_PER_CALL = 1024  # an engine's answer holds every token of them
PICTURES_PER_CALL = 32  # opened at a time
ROUND_TOKENS = 64  # generated between two looks for a stop string
FRACTIONS = (
    "acc",
    "acc_norm",
    "exact_match",
    "f1",
    "mcc",
    "precision",
    "recall",
    "vqa_acc",
    "yes_ratio",
)  # metrics in [0, 1] or [-1, 1]

EncodedPair = tuple[tuple[str, str] | None, list[int], list[int]]  # (text, context, continuation)


def check_tasks(tasks: Sequence[str], task_path: Path | None) -> None:
    """Raise ConfigError with the nearest names when a task is neither in `task_path` nor shipped with the harness.

    So for a file of the suite's own folder that is no task: the harness passes over it in silence.
    """
    for path in sorted(task_path.rglob("*.yaml")) if task_path is not None else ():
        _check_task_file(path)
    _task_manager(tasks, task_path)


def run_tasks(
    evaluator: Evaluator,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[str],
    task_path: Path | None,
    limit: int | None,
    seed: int = FEWSHOT_SEED,
    own: Mapping[str, dict[str, Any]] | None = None,
) -> list[Metric]:
    """Score the loaded checkpoint on harness tasks, each with its own number of shots.

    One Metric for every (task or group, metric, filter): `<task>.<metric>`, and `<task>.<metric>_<filter>` for a named
    filter. limit: items per task, null for all. own: tasks by name that stand in no folder, in the harness's words.
    Raises ConfigError for an unknown task, BadInputError for one that needs sampling or that the harness cannot use,
    NumericalError when a log-probability is NaN.
    """
    given = own or {}
    named = [task for task in tasks if task not in given]
    manager = _task_manager(named, task_path) if named else TaskManager(include_defaults=False)
    try:
        model = HarnessModel(evaluator, tokenizer)
        results = _evaluated(model, [given.get(task, task) for task in tasks], manager, limit, seed)
    except Exception as error:
        if not _is_of_the_tasks(error):
            raise
        raise BadInputError(
            f"lm-evaluation-harness cannot use one of the tasks {', '.join(tasks)} ({type(error).__name__}: {error}); "
            f"check the YAML and the data of {task_path or 'that task'}"
        ) from error
    return [metric for name, row in results["results"].items() for metric in _metrics(name, dict(row))]


def _is_of_the_tasks(error: Exception) -> bool:
    """Whether the harness failed by itself: not below this file's model, nor for want of the hub, disk or memory."""
    for cause in causes(error):
        lacks = isinstance(cause, OSError | MemoryError) and not isinstance(cause, FileNotFoundError)
        if lacks or isinstance(cause, CellError | ConfigError) or is_outage(cause) or is_refusal(cause):
            return False
    frames = [frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not any(name.startswith(HarnessModel.__name__) for name in frames)


def _check_task_file(path: Path) -> None:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"suite.task_path: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"suite.task_path: {path} is no task of lm-evaluation-harness: entries (key: value) are needed"
        )
    for key, value in node.value:
        if key.value == "task" and isinstance(value, yaml.ScalarNode) and not value.tag.endswith(":str"):
            raise ConfigError(f"suite.task_path: {path}: `task: {value.value}` is no name; quote it or choose another")


def _evaluated(
    model: "HarnessModel", tasks: list[str | dict[str, Any]], manager: TaskManager, limit: int | None, seed: int
) -> dict[str, Any]:
    os.environ["DISABLE_MULTIPROC"] = "1"  # or the harness's bootstrap forks this process, engine and all
    results = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        log_samples=False,
        bootstrap_iters=BOOTSTRAP_DRAWS,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert results is not None
    return dict(results)


def _task_manager(tasks: Sequence[str], task_path: Path | None) -> TaskManager:
    """Knows all of `tasks`: the suite's own folder alone where that has them, else together with the harness's."""
    if task_path is not None:
        own = TaskManager(include_path=str(task_path), include_defaults=False)
        if set(tasks) <= set(own.all_subtasks):
            return own
    manager = _shipped(task_path)
    for task in tasks:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            where = f"{task_path} and the harness" if task_path else "the harness"
            raise ConfigError(f"suite.tasks: no task `{task}` in {where}; {hint}`lm-eval ls tasks` lists them")
    return manager


@functools.cache
def _shipped(task_path: Path | None) -> TaskManager:
    return TaskManager(include_path=None if task_path is None else str(task_path))


def _metrics(task: str, row: dict[str, Any]) -> list[Metric]:
    """One row of the harness's results: `<metric>,<filter>` and `<metric>_stderr,<filter>` beside its name and size."""
    metrics = []
    for key, value in row.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = row.get(f"{metric}_stderr,{filter_name}")
        metrics.append(
            Metric(
                name=f"{task}.{metric}" if filter_name == "none" else f"{task}.{metric}_{filter_name}",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                num_examples=int(row["sample_len"]),
                unit="fraction" if metric in FRACTIONS else "",
            )
        )
    return metrics


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is untyped
    """What the harness asks of a model, answered by an Evaluator. Tokenizes as the harness's own backends do."""

    MULTIMODAL = True  # tasks about images are handed over; whether the evaluator shows them is seen then

    def __init__(self, evaluator: Evaluator, tokenizer: "PreTrainedTokenizerBase") -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._evaluator = evaluator

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """The tokenizer's own special tokens, unless told otherwise or the text already starts with a BOS."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special: dict[str, bool] = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        tokens: list[int] = self.tokenizer(string, verbose=False, **special)["input_ids"]
        return tokens

    def _loglikelihood_tokens(
        self, requests: Sequence[EncodedPair], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each continuation; what exceeds the context loses its left end."""
        limit = self._evaluator.max_length
        for _, _, continuation in requests:
            if not 0 < len(continuation) < limit:
                raise BadInputError(
                    f"a task's answer of {len(continuation)} tokens cannot be scored in a context of {limit}"
                )
        results = []
        for start in range(0, len(requests), REQUESTS_PER_CALL):
            part = requests[start : start + REQUESTS_PER_CALL]
            scores = self._evaluator.score([(context + continuation)[-limit:] for _, context, continuation in part])
            for (_, _, continuation), score in zip(part, scores, strict=True):
                logprob = float(score.logprobs[-len(continuation) :].sum())
                if math.isnan(logprob):
                    raise NumericalError("a benchmark task's log-probability is NaN")
                results.append((logprob, bool(score.is_argmax[-len(continuation) :].all())))
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each whole text, in windows that share no token to predict."""
        pairs: list[EncodedPair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._evaluator.max_length - 1,  # the last token is part of the prompt here
                context_len=1,
            )
            for window in windows:
                context, continuation = make_disjoint_window(window)
                pairs.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy text after each context, and images where a request has some, cut at its first stop string."""
        written = iter(self._written([r.args for r in requests if len(r.args) == 2]))
        answered = iter(self._answered([r.args for r in requests if len(r.args) == 3]))
        return [next(written if len(r.args) == 2 else answered) for r in requests]

    def _answered(self, requests: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[str]:
        if requests and not isinstance(self._evaluator, ShowsImages):
            raise BadInputError(f"{self._evaluator.name} is shown no images here; set engine=transformers")
        wanted = [_greedy(arguments) for _, arguments, _ in requests]
        by_length: dict[int, list[int]] = {}
        for index, arguments in enumerate(wanted):
            by_length.setdefault(int(arguments["max_gen_toks"]), []).append(index)
        answers = [""] * len(requests)
        for length, indices in by_length.items():
            for start in range(0, len(indices), PICTURES_PER_CALL):
                part = indices[start : start + PICTURES_PER_CALL]
                prompts = [ImagePrompt(requests[i][0], tuple(map(_opened, requests[i][2]["visual"]))) for i in part]
                assert isinstance(self._evaluator, ShowsImages)
                for i, text in zip(part, self._evaluator.answer(prompts, length), strict=True):
                    stops = handle_stop_sequences(wanted[i]["until"], eos=None)
                    answers[i] = postprocess_generated_text(text, stops, None)
        return answers

    def _written(self, requests: list[tuple[str, dict[str, Any]]]) -> list[str]:
        generations = [self._generation(context, arguments) for context, arguments in requests]
        open_ones = generations
        while open_ones:
            prompts = [g.prompt + g.tokens for g in open_ones]
            new_tokens = min(ROUND_TOKENS, *(g.remaining for g in open_ones))
            answers = self._evaluator.generate(prompts, new_tokens, [self.eot_token_id])
            for generation, new in zip(open_ones, answers, strict=True):
                generation.tokens += new
                generation.remaining = generation.remaining - new_tokens if len(new) == new_tokens else 0
                if any(stop in self._text(generation) for stop in generation.stops):
                    generation.remaining = 0
            open_ones = [g for g in open_ones if g.remaining]
        return [postprocess_generated_text(self._text(g), g.stops, None) for g in generations]

    def _generation(self, context: str, arguments: dict[str, Any]) -> "_Generation":
        wanted = _greedy(arguments)
        new_tokens = int(wanted["max_gen_toks"])
        room = self._evaluator.max_length - new_tokens
        if room < 1:
            raise BadInputError(
                f"a task's answer of up to {new_tokens} tokens does not fit the model's context of "
                f"{self._evaluator.max_length}"
            )
        stops = handle_stop_sequences(wanted["until"], eos=self.tokenizer.decode(self.eot_token_id))
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        return _Generation(prompt[-room:], new_tokens, [stop for stop in stops if stop])

    def _text(self, generation: "_Generation") -> str:
        return str(self.tokenizer.decode(generation.tokens, skip_special_tokens=False))


def _greedy(arguments: dict[str, Any]) -> dict[str, Any]:
    wanted: dict[str, Any] = normalize_gen_kwargs(arguments, default_max_gen_toks=MAX_NEW_TOKENS)
    if wanted["do_sample"]:
        raise BadInputError("a benchmark task asks for sampling; answers are generated greedily here")
    return wanted


def _opened(image: "Path | Image | Callable[[], Image]") -> "Image":
    """In RGB: a file, what opens an image, or one that is open. Raises BadInputError naming what cannot be read."""
    from PIL import Image

    try:
        if isinstance(image, Path):
            with Image.open(image) as opened:
                return opened.convert("RGB")
        return (image() if callable(image) else image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # which is what Pillow's decoders raise
        raise BadInputError(f"{image}: the image cannot be read ({error}); copy it again") from error


@dataclass
class _Generation:
    """One answer as it grows. remaining: tokens it may still get."""

    prompt: list[int]
    remaining: int
    stops: list[str]
    tokens: list[int] = field(default_factory=list)
