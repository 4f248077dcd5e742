"""The border to Hydra: dataclasses into its config store, and composition with errors a user can act on.

The only module that imports hydra. `compose` returns typed nodes, `parse` reads Hydra's override grammar.
"""

import copy
import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
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

GROUPS = (*filter(None, SCHEMAS), "experiment")
SLOTS = ("rotate", "scale", "incohere", "keep", "clip", "tune", "round")
SHORTHANDS = {"bits": "scheme.bits", "group_size": "scheme.group_size"}
KEYS = ("experiment", *SHORTHANDS, *(f.name for f in dataclasses.fields(s.RootConf)))


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
    _merged.cache_clear()
    with initialize_config_dir(str(directory), version_base="1.3"):
        yield


def options(group: str) -> list[str]:
    """Names a user may choose in a group, schemas left out; empty for what is no group. Call inside `hydra_context`."""
    if group not in GROUPS:
        return []
    names = GlobalHydra.instance().config_loader().get_group_options(group)
    return [name for name in names if not name.endswith("_schema")]


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

    Raises ConfigError for what does not parse, for group options that do not exist, and for a key given twice.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices: dict[str, Choice] = {}
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except (OverrideParseException, HydraException) as error:
            raise ConfigError(
                f"cannot read `{text}`: {_first_line(error)}\n"
                "  write key=value; quote values that hold `=`, `,` or spaces: 'key=\"a=b\"'"
            ) from error
        choice = _choice(text, override)
        if choice.key in choices:
            raise ConfigError(f"`{text}`: {choice.key} is given twice; several values are an axis: {choice.key}=a,b")
        choices[choice.key] = choice
    return list(choices.values())


def _choice(text: str, override: Override) -> Choice:
    key = canonical_key(str(override.key_or_group) + (f"@{override.package}" if override.package else ""))
    if override.is_delete() or override.is_add():
        raise ConfigError(f"`{text}`: keys can be neither added nor deleted; write key=value for a key that exists")
    _check_key(text, key)
    if not override.is_sweep_override():
        value = override.get_value_element_as_str()
        check_option(key, value)
        return Choice(key, (value,))
    if not override.is_discrete_sweep():
        raise ConfigError(f"`{text}`: an interval has no list of values; write a comma list, range() or choice()")
    values = tuple(v for v in dict.fromkeys(override.sweep_string_iterator()) if not v.endswith("_schema"))
    if not values:
        raise ConfigError(f"`{text}`: matches nothing; valid: {', '.join(options(key))}")
    for value in values:
        check_option(key, value)
    return Choice(key, values)


def _check_key(text: str, key: str) -> None:
    root = re.split(r"[.@/]", key)[0]
    if root in ("", "hydra"):
        raise ConfigError(f"`{text}`: no such key; valid: {', '.join(KEYS)}")
    if root == "axes":
        raise ConfigError(f"`{text}`: an axis is given by its values: {key.removeprefix('axes.')}=a,b")
    if root in SLOTS and key != f"{root}@method.{root}":
        raise ConfigError(f"`{text}`: a slot belongs to a method; write {root}@method.{root}=<option>")
    if "${" in text:
        raise ConfigError(f"`{text}`: references are not read on the command line; write the value itself")


def check_option(key: str, value: str) -> None:
    """Raise ConfigError when a group is given an option it does not have. value: as written, perhaps quoted."""
    group = key.split("@")[0]
    names = options(group)
    if names and value.strip("'\"") not in names:
        near = _nearest(value, names)
        raise ConfigError(f"conf/{group}/ has no `{value}`{near}\n  valid: {', '.join(names)}")


@dataclasses.dataclass(frozen=True)
class Composed:
    """Typed nodes, and which option each group ended on (a method may choose its scheme)."""

    root: s.RootConf
    choices: dict[str, str]


def compose(overrides: Sequence[str]) -> Composed:
    """Compose the root config with single-valued overrides. Call inside `hydra_context`.

    Raises ConfigError with the file, the key and the nearest valid names.
    """
    options = tuple(text for text in overrides if _is_option(text))
    config, choices = _merged(options)
    config = copy.deepcopy(config)
    for text in overrides:
        if text not in options:
            _fill_in(config, text)
    try:
        root = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(root, s.RootConf)
    return Composed(root, dict(choices))


def _is_option(override: str) -> bool:
    """`method=gptq` and `clip@method.clip=mse` choose a file of a group; `scheme.bits=3` and `seed=1` are values."""
    return re.split("[@=]", override)[0] in GROUPS


@functools.cache
def _merged(options: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """The files of these options merged by Hydra, and which option each group ended on.

    The 0.15 s of a composition are spent here, so values are filled in afterwards, as Hydra does it too.
    """
    try:
        config = hydra_compose("config", overrides=list(options), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.set_struct(config.cluster.secrets, False)  # its keys are the user's own
    return config, choices


def _fill_in(config: DictConfig, text: str) -> None:
    """Set one value. Raises ConfigError when there is no such key or the value is of another type."""
    (override,) = OverridesParser.create().parse_overrides([text])
    key = override.key_or_group
    if key.startswith("model.shape.") and config.model.shape is None:
        # OmegaConf cannot fill in single keys of a node that is null, and dies of it
        raise ConfigError(
            f"`{text}`: this model has no shape to change; start from one of its size, for example "
            "model=llama2-7b model.repo=<hub id>"
        )
    try:
        OmegaConf.update(config, key, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"`{text}`: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's errors in words: where, which key, what would have been valid."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    where = re.sub(r"^In '(.+?)': (\w+ raised while composing config:)?", r"conf/\1.yaml: ", _first_line(error)).strip()
    if not isinstance(cause, OmegaConfBaseException):
        return "\n  ".join([where, *_hints(error)])
    parts = [where]
    if cause.full_key and str(cause.full_key) not in where:
        parts.append(f"at `{cause.full_key}`")
    reason = _first_line(cause)
    if reason not in where:
        parts.append(reason)
    if "missing mandatory value" in reason.lower():
        parts.append(f"give it: {cause.full_key}=...")
    elif cause.key is not None and dataclasses.is_dataclass(cause.object_type):
        parts += _valid_keys(str(cause.key), cause.object_type)
    return "\n  ".join(parts)


def _valid_keys(key: str, node: Any) -> list[str]:
    """What to write instead of a key that a node does not have."""
    valid = KEYS if node is s.RootConf else [f.name for f in dataclasses.fields(node)]
    if key in valid:
        return []
    return [f"valid keys: {', '.join(valid)}{_nearest(key, valid)}" if valid else f"{node.__name__} has no keys"]


def _hints(error: Exception) -> list[str]:
    """What Hydra itself proposes, else the keys there are."""
    lines = str(error).splitlines()
    proposed = [line.strip() for line in lines if "Did you mean" in line]
    available = [line.strip() for line in lines if line.startswith("\t") and "=" not in line]
    if available:
        return [f"valid: {', '.join(name for name in available if not name.endswith('_schema'))}"]
    return proposed or [f"valid keys: {', '.join(KEYS)}"]


def _nearest(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.strip("'\""), valid, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
