"""The border to Hydra: dataclasses into its config store, and composition with errors a user can act on.

The only module that imports hydra. `compose` returns typed nodes, `parse` reads Hydra's override grammar.
"""

import copy
import dataclasses
import functools
import itertools
import math
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
from conf.wording import KEYS, SHORTHANDS, explain, nearest, why_unreadable

ROOT = Path(__file__).parent

# group -> option stem -> dataclass; `<stem>_schema` is what a YAML file puts first in its defaults list.
SCHEMAS: dict[str, dict[str, type]] = {
    "": {"root": s.RootConf},
    "model": {"model": s.ModelConf},
    "method": {"method": s.MethodConf},
    "rotate": {"none": s.NoRotate, "hadamard": s.HadamardRotate, "random": s.RandomRotate},
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
MAX_AXIS_VALUES = 10_000


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
    choices: dict[str, Choice] = {}
    for text in overrides:
        choice = _choice(text, _read(text))
        if choice.key in choices:
            raise ConfigError(f"`{text}`: {choice.key} is given twice; several values are an axis: {choice.key}=a,b")
        choices[choice.key] = choice
    return list(choices.values())


def _read(text: str) -> Override:
    """One override in Hydra's grammar. Raises ConfigError."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python shows bytes that are no text
        raise ConfigError(f"cannot read {text!a}: not UTF-8; rename what it names")
    try:
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (override,) = parser.parse_overrides([text])
    except (OverrideParseException, HydraException) as error:
        raise ConfigError(f"cannot read `{text}`: {why_unreadable(text)}") from error
    return override


def _choice(text: str, override: Override) -> Choice:
    key = canonical_key(str(override.key_or_group) + (f"@{override.package}" if override.package else ""))
    if override.is_delete() or override.is_add() or override.is_force_add():
        raise ConfigError(f"`{text}`: keys can be neither added nor deleted; write key=value for a key that exists")
    _check_key(text, key)
    if not override.is_sweep_override():
        value = override.get_value_element_as_str()
        if value == "{}":
            raise ConfigError(
                f"`{text}`: an empty mapping changes nothing, because entries are added to those there are"
            )
        check_option(key, value)
        return Choice(key, (value,))
    if not override.is_discrete_sweep():
        raise ConfigError(f"`{text}`: an interval has no list of values; write a comma list, range() or choice()")
    try:
        listed = list(itertools.islice(override.sweep_string_iterator(), MAX_AXIS_VALUES + 1))
    except ValueError as error:  # a range with a step of 0
        raise ConfigError(f"`{text}`: {error}") from error
    if len(listed) > MAX_AXIS_VALUES:
        raise ConfigError(f"`{text}`: more than {MAX_AXIS_VALUES} values")
    values = tuple(v for v in dict.fromkeys(listed) if not v.endswith("_schema"))
    if not values:
        valid = options(key)
        raise ConfigError(f"`{text}`: matches nothing{'; valid: ' + ', '.join(valid) if valid else ''}")
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
    if key in (f"method.{slot}" for slot in SLOTS):
        slot = key.removeprefix("method.")
        raise ConfigError(f"`{text}`: a slot is given by its option; write {slot}@{key}=<one of conf/{slot}/>")
    if key == "lane.published":
        raise ConfigError(f"`{text}`: a lane is chosen by its name: lane={' or lane='.join(options('lane'))}")
    if "${" in text:
        raise ConfigError(f"`{text}`: references are not read on the command line; write the value itself")


def check_option(key: str, value: str) -> None:
    """Raise ConfigError when a group is given an option it does not have. value: as written, perhaps quoted."""
    group = key.split("@")[0]
    names = options(group)
    if names and value.strip("'\"") not in names:
        written = value.replace("\\", "")  # Hydra's escapes
        advice = "\n  a directory or hub id: model=hf model.repo=<it>" if group == "model" and "/" in written else ""
        near = nearest(written, names)
        raise ConfigError(f"conf/{group}/ has no `{written}`{near}\n  valid: {', '.join(names)}{advice}")


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
    _refuse_infinite(root)
    return Composed(root, dict(choices))


def _refuse_infinite(node: Any, key: str = "") -> None:
    """NaN and infinity are floats, but there is no value that may be one of them."""
    if isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{key}={node}: a finite number is needed")
    if dataclasses.is_dataclass(node):
        node = vars(node)
    if isinstance(node, dict):
        for name, value in node.items():
            _refuse_infinite(value, f"{key}.{name}".lstrip("."))
    if isinstance(node, list):
        for index, value in enumerate(node):
            _refuse_infinite(value, f"{key}[{index}]")


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
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_not_utf8()}: not UTF-8 text ({error}); save it as UTF-8") from error
    except ValueError as error:  # a defaults list that is none
        raise ConfigError(f"in the files of {' '.join(options) or 'conf/config.yaml'}: {error}") from error
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.set_struct(config.cluster.secrets, False)  # its keys are the user's own
    return config, choices


def _not_utf8() -> Path | str:
    """The YAML file that is not UTF-8: Hydra's error does not say."""
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.scheme() == "file":
            for path in sorted(Path(source.path).rglob("*.yaml")):
                try:
                    path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    return path
    return "conf/"


def _fill_in(config: DictConfig, text: str) -> None:
    """Set one value. Raises ConfigError when there is no such key or the value is of another type."""
    override = _read(text)
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
