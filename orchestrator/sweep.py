"""Axes to points: the grid of a sweep, each point a typed CellConf.

Composing every cell with Hydra would take 0.15 s each. Instead each node of a cell (model, method, scheme, ...) is
composed once per distinct set of overrides that can reach it, and nodes are combined; a test checks equality with full
composition. Points share equal nodes: what is equal is one object.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from conf import register
from conf.errors import ConfigError
from conf.register import Choice, Composed
from conf.schema import CellConf, ClusterConf, FloatScheme, MethodConf, RootConf, TrackingConf
from orchestrator.execution import check_execution
from workers.redaction import Redactor

NODES = ("model", "method", "scheme", "calibration", "suite", "lane", "numerics", "engine", "seed")
MAX_COMBINATIONS = 100_000

Rule = dict[str, Any]  # axis key -> value or values, as YAML has them
Setting = tuple[Rule, dict[str, str]]  # where it holds; override key -> value as written


@dataclass(frozen=True)
class Point:
    """One point of the grid. assignment: axis key -> value as written, in axis order."""

    config: CellConf
    assignment: dict[str, str]


@dataclass(frozen=True)
class Sweep:
    """What the command line asked for, expanded; nothing resolved yet."""

    name: str
    points: tuple[Point, ...]
    cluster: ClusterConf
    tracking: TrackingConf


@dataclass
class _Nodes:
    """Composed nodes by the overrides that reach them. shared: each different node once, by its repr."""

    fixed: tuple[str, ...]
    composed: dict[tuple[str, ...], Composed] = field(default_factory=dict)
    known: dict[tuple[tuple[str, str], ...], Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def get(self, node: str, overrides: dict[str, str]) -> Any:
        """The node under those of the overrides that can change it."""
        relevant = tuple((key, value) for key, value in overrides.items() if _head(key) == node)
        found = self.known.get(key := (("node", node), *relevant))
        if found is None:
            found = getattr(self._composed(dict(relevant)).root, node)
            found = self.known[key] = self.shared.setdefault(f"{node} {found!r}", found)
        return found

    def with_scheme(self, overrides: dict[str, str]) -> dict[str, str]:
        """Overrides in which the scheme's option is explicit: a method may choose it."""
        if "scheme" in overrides or "method" not in overrides:
            return overrides
        choice = self._composed({"method": overrides["method"]}).choices["scheme"]
        return {"scheme": choice, **overrides}

    def root(self, overrides: dict[str, str]) -> RootConf:
        """Everything under these overrides."""
        return self._composed(overrides).root

    def _composed(self, relevant: dict[str, str]) -> Composed:
        key = tuple(f"{k}={v}" for k, v in relevant.items())
        if key not in self.composed:
            self.composed[key] = register.compose([*self.fixed, *key])
        return self.composed[key]


def expand(overrides: Sequence[str]) -> Sweep:
    """Expand command-line overrides over an experiment. Raises ConfigError before anything else happens."""
    _refuse_credentials(overrides)
    with register.hydra_context():
        given = {choice.key: choice for choice in register.parse(overrides)}
        experiment = given.pop("experiment", None)
        if experiment is not None and experiment.is_axis:
            raise ConfigError("experiment: one at a time")
        nodes = _Nodes(() if experiment is None else (f"experiment={experiment.values[0]}",))
        axes = _axes(nodes.root({}), given)
        fixed = {key: choice.values[0] for key, choice in given.items() if key not in axes}
        root = nodes.root({key: value for key, value in fixed.items() if _head(key) not in NODES})
        _refuse_credentials([f"tracking.uri={root.tracking.uri}"])
        check_execution(root)
        _check_rules("exclude", root.exclude, axes)
        settings = _settings(root.settings, axes)
        identity = {key: value for key, value in fixed.items() if _head(key) in NODES}
        points = tuple(_points(nodes, identity, axes, root.exclude, settings))
    if not points:
        raise ConfigError("`exclude` leaves no cell of this grid; take a rule away, or exclude=[]")
    return Sweep(root.name, points, root.cluster, root.tracking)


def _axes(root: RootConf, given: dict[str, Choice]) -> dict[str, tuple[str, ...]]:
    """The experiment's axes, those of the command line in their place or behind them."""
    axes = {register.canonical_key(key): tuple(_written(v) for v in values) for key, values in root.axes.items()}
    axes |= {key: choice.values for key, choice in given.items() if choice.is_axis or key in axes}
    for key, values in axes.items():
        if not values:
            raise ConfigError(f"axis `{key}` has no values")
        if _head(key) not in NODES:
            raise ConfigError(f"`{key}` cannot be an axis: only {', '.join(NODES)} identify a cell")
        for value in values:
            register.check_option(key, value)
    combinations = math.prod(len(values) for values in axes.values())
    if combinations > MAX_COMBINATIONS:
        sizes = " x ".join(f"{len(values)} {key}" for key, values in axes.items())
        raise ConfigError(
            f"the axes have {combinations} combinations ({sizes}); a sweep takes {MAX_COMBINATIONS} at most"
        )
    return axes


def _points(
    nodes: _Nodes,
    fixed: dict[str, str],
    axes: dict[str, tuple[str, ...]],
    exclude: list[Rule],
    settings: list[Setting],
) -> Iterator[Point]:
    seen: set[tuple[int, ...]] = set()
    for combination in itertools.product(*axes.values()):
        assignment = dict(zip(axes, combination, strict=True))
        if any(_is_meant(assignment, rule) for rule in exclude):
            continue
        set_there: dict[str, str] = {}
        for rule, overrides in settings:
            set_there |= overrides if _is_meant(assignment, rule) else {}
        point = _point(nodes, fixed, assignment, set_there)
        identity = tuple(id(getattr(point.config, node)) for node in NODES)
        if identity not in seen:
            seen.add(identity)
            yield point


def _point(nodes: _Nodes, fixed: dict[str, str], assignment: dict[str, str], set_there: dict[str, str]) -> Point:
    overrides = {k: assignment.get(k, fixed.get(k, "")) for k in sorted({*fixed, *assignment}, key=_composition_order)}
    if nodes.get("lane", overrides).published:
        overrides = _merged(_recipe(nodes.get("method", overrides), overrides.get("scheme.bits")), overrides)
    overrides = set_there | overrides
    overrides = nodes.with_scheme(overrides)
    if isinstance(nodes.get("scheme", {"scheme": overrides["scheme"]} if "scheme" in overrides else {}), FloatScheme):
        # a 16-bit baseline has no grid: axes over bits and groups collapse on it
        overrides = {k: v for k, v in overrides.items() if not k.startswith("scheme.")}
        assignment = {k: v for k, v in assignment.items() if not k.startswith("scheme.")}
    return Point(CellConf(**{node: nodes.get(node, overrides) for node in NODES}), assignment)


def _recipe(method: MethodConf, bits: str | None) -> list[Choice]:
    """What the method's authors set, at these bits if they set more for them."""
    return register.parse(method.published) + register.parse(method.published_at.get(bits or "", []))


def _merged(recipe: list[Choice], overrides: dict[str, str]) -> dict[str, str]:
    """The published recipe first, then what the user wrote: an explicit override wins."""
    return {c.key: c.values[0] for c in recipe} | overrides


@functools.cache
def _head(key: str) -> str:
    """`round@method.round` -> method; `scheme.bits` -> scheme."""
    return key.split("@")[-1].split(".")[0]


@functools.cache
def _composition_order(key: str) -> tuple[int, str]:
    """Group choices before values, so that equal cells have equal override lists."""
    return ("." in key.split("@")[0], key)


def _is_meant(assignment: dict[str, str], rule: Rule) -> bool:
    """Whether a rule's values are all those of this point; without any it means nothing."""
    if not rule:
        return False
    for key, values in rule.items():
        wanted = [_written(v) for v in (values if isinstance(values, list) else [values])]
        if assignment.get(register.canonical_key(key)) not in wanted:
            return False
    return True


def _check_rules(name: str, rules: list[Rule], axes: dict[str, tuple[str, ...]]) -> None:
    for rule in rules:
        for key in rule:
            axis = register.canonical_key(key)
            if axis not in axes:
                raise ConfigError(f"{name}: `{key}` is not an axis here; the axes are {', '.join(axes)}")
            for value in rule[key] if isinstance(rule[key], list) else [rule[key]]:
                register.check_option(axis, _written(value))


def _settings(entries: list[Rule], axes: dict[str, tuple[str, ...]]) -> list[Setting]:
    """Where each entry holds, and what it sets there."""
    found = []
    for entry in entries:
        rule = {key: value for key, value in entry.items() if key != "set"}
        written = entry.get("set")
        if not rule or not isinstance(written, list) or not all(isinstance(text, str) for text in written):
            raise ConfigError(
                f"settings: {entry}: an entry says where it holds and what it sets there, as in "
                "{method: omniquant, set: [method.tune.epochs=2]}"
            )
        choices = register.parse(written)
        for choice in choices:
            if choice.is_axis or _head(choice.key) not in NODES:
                raise ConfigError(f"settings: `{choice.key}`: one value of a key that identifies a cell is needed")
        found.append((rule, {choice.key: choice.values[0] for choice in choices}))
    _check_rules("settings", [rule for rule, _ in found], axes)
    return found


def _refuse_credentials(texts: Sequence[str]) -> None:
    """What is configured is recorded, in files and in MLflow."""
    mask = Redactor([])
    for text in texts:
        if mask(text) != text:
            raise ConfigError(
                f"`{mask(text)}`: a password or token must not stand in a configuration, which is recorded with the "
                "results. For MLflow set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment; "
                "for the hub: cluster.secrets.HF_TOKEN=<file on every node>"
            )


def _written(value: Any) -> str:
    """A YAML value as Hydra's override grammar writes it."""
    if value is None:
        return "null"
    if isinstance(value, str) and not re.fullmatch(r"[\w./:+-]+", value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
