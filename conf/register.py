"""The border to Hydra: dataclasses into its config store, and composition with errors a user can act on.

The only module that imports hydra. `compose` returns typed nodes, `expand` reads Hydra's override grammar.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from conf import schema as s
from conf.errors import ConfigError

ROOT = Path(__file__).parent

# group -> option stem -> dataclass; `<stem>_schema` is what a YAML file puts first in its defaults list.
SCHEMAS: dict[str, dict[str, type]] = {
    "": {"root": s.RootConf},
    "model": {"model": s.ModelConf},
    "method": {"method": s.MethodConf},
    "rotate": {"none": s.NoRotate, "hadamard": s.HadamardRotate},
    "scale": {"none": s.NoScale, "awq": s.AwqScale, "smooth": s.SmoothScale, "learned": s.LearnedScale},
    "incohere": {"none": s.NoIncohere, "kronecker": s.KroneckerIncohere, "hadamard": s.HadamardIncohere},
    "keep": {"none": s.NoKeep, "columns": s.ColumnsKeep, "mask": s.MaskKeep},
    "clip": {
        "minmax": s.MinmaxClip,
        "mse": s.MseClip,
        "search": s.SearchClip,
        "rms": s.RmsClip,
        "learned": s.LearnedClip,
    },
    "tune": {"none": s.NoTune, "block": s.BlockTune},
    "round": {
        "none": s.NoRound,
        "nearest": s.NearestRound,
        "gptq": s.GptqRound,
        "ldlq": s.LdlqRound,
        "gptaq": s.GptaqRound,
        "hqq": s.HqqRound,
    },
    "scheme": {
        "float16": s.FloatScheme,
        "uniform": s.UniformScheme,
        "real_zero": s.RealZeroScheme,
        "vector_codebook": s.VectorCodebookScheme,
        "mixed": s.MixedScheme,
    },
    "calibration": {"calibration": s.CalibrationConf},
    "suite": {"suite": s.SuiteConf},
    "lane": {"lane": s.LaneConf},
    "cluster": {"cluster": s.ClusterConf},
    "tracking": {"tracking": s.TrackingConf},
}

SLOTS = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")
SHORTHANDS = {"bits": "scheme.bits", "group_size": "scheme.group_size"}


def register() -> None:
    """Put every dataclass into Hydra's config store. Safe to call again."""
    store = ConfigStore.instance()
    for group, options in SCHEMAS.items():
        for stem, node in options.items():
            store.store(group=group or None, name=f"{stem}_schema", node=_open_slots() if group == "method" else node)


def _open_slots() -> s.MethodConf:
    """A method with every slot still to be chosen: a default option would pin the slot to that option's dataclass."""
    return s.MethodConf(**dict.fromkeys(SLOTS, s.MISSING))


@contextmanager
def hydra_context(directory: Path = ROOT) -> Iterator[None]:
    """Hydra initialised on the configuration directory; composition happens inside."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base="1.3"):
        yield


def groups() -> dict[str, list[str]]:
    """Group -> names a user may choose (schemas left out). Call inside `hydra_context`."""
    loader = GlobalHydra.instance().config_loader()
    found = {g: loader.get_group_options(g) for g in (*SCHEMAS, "experiment") if g}
    return {g: [n for n in names if not n.endswith("_schema")] for g, names in found.items()}


@dataclasses.dataclass(frozen=True)
class Choice:
    """One override read from the command line: canonical key, and its values as Hydra would write them."""

    key: str
    values: tuple[str, ...]

    @property
    def is_axis(self) -> bool:
        return len(self.values) > 1


def canonical_key(key: str) -> str:
    """`bits` -> `scheme.bits`, `round@method.round` stays."""
    return SHORTHANDS.get(key, key)


def parse(overrides: Sequence[str]) -> list[Choice]:
    """Read Hydra's override grammar: a comma list, glob(), range() or choice() has several values.

    Raises ConfigError for what does not parse and for group options that do not exist.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices = []
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except (OverrideParseException, HydraException) as error:
            raise ConfigError(
                f"cannot read `{text}`: {_first_line(error)}\n"
                "  write key=value; quote values that hold `=`, `,` or spaces: 'key=\"a=b\"'"
            ) from error
        choices.append(_choice(text, override))
    return choices


def _choice(text: str, override: Override) -> Choice:
    key = canonical_key(str(override.key_or_group) + (f"@{override.package}" if override.package else ""))
    if override.is_delete() or override.is_add():
        raise ConfigError(f"`{text}`: keys can be neither added nor deleted; write key=value for a key that exists")
    if not override.is_sweep_override():
        value = override.get_value_element_as_str()
        _check_option(key, value)
        return Choice(key, (value,))
    if not override.is_discrete_sweep():
        raise ConfigError(f"`{text}`: an interval has no list of values; write a comma list, range() or choice()")
    values = tuple(v for v in dict.fromkeys(override.sweep_string_iterator()) if not v.endswith("_schema"))
    if not values:
        raise ConfigError(f"`{text}`: matches nothing; valid: {', '.join(groups().get(key, []))}")
    for value in values:
        _check_option(key, value)
    return Choice(key, values)


def _check_option(key: str, value: str) -> None:
    group = key.split("@")[0]
    options = groups()
    if group in options and value not in options[group]:
        raise ConfigError(
            f"conf/{group}/ has no `{value}`. {_nearest(value, options[group])}\n  valid: {', '.join(options[group])}"
        )


@dataclasses.dataclass(frozen=True)
class Composed:
    """Typed nodes, and which option each group ended on (a method may choose its scheme)."""

    root: s.RootConf
    choices: dict[str, str]


def compose(overrides: Sequence[str]) -> Composed:
    """Compose the root config with single-valued overrides. Call inside `hydra_context`.

    Raises ConfigError with the file, the key and the nearest valid names.
    """
    try:
        composed = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
        root = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(root, s.RootConf)
    return Composed(root, choices)


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's errors in words: where, which key, what would have been valid."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    where = _first_line(error)
    if not isinstance(cause, OmegaConfBaseException):
        return where + _group_hint(where)
    parts = [where]
    if cause.full_key and str(cause.full_key) not in where:
        parts.append(f"at `{cause.full_key}`")
    reason = _first_line(cause)
    if reason not in where:
        parts.append(reason)
    fields = _fields(cause.object_type)
    if cause.key is not None and cause.object_type is not None and str(cause.key) not in fields:
        if not fields:
            return "\n  ".join([*parts, f"{cause.object_type.__name__} has no keys"])
        parts.append(f"{_nearest(str(cause.key), fields)}\n  valid keys: {', '.join(fields)}")
    if "missing mandatory value" in reason.lower():
        parts.append(f"give it: {cause.full_key}=...")
    return "\n  ".join(p for p in parts if p)


def _fields(node: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(node)] if node and dataclasses.is_dataclass(node) else []


def _group_hint(text: str) -> str:
    for quote in ("'", "`"):
        for word in text.split(quote)[1::2]:
            near = difflib.get_close_matches(word, [*SCHEMAS, "experiment", *SHORTHANDS, "name", "seed", "engine"], 3)
            if near:
                return f"\n  did you mean {' or '.join(near)}?"
    return ""


def _nearest(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
