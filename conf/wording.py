"""Errors of Hydra and OmegaConf in words: where, which key, what would have been valid."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from conf import schema as s

SHORTHANDS = {"bits": "scheme.bits", "group_size": "scheme.group_size"}
KEYS = ("experiment", *SHORTHANDS, *(f.name for f in dataclasses.fields(s.RootConf)))
# What OmegaConf says, and what a user reads instead.
PLAIN_WORDS = (
    (r"field '.+?' is not Optional", "null is not allowed"),
    (r"Value '(.*)' of type '\w+' could not be converted to Integer", r"`\1` is not a whole number"),
    (r"Value '(.*)' of type '\w+' could not be converted to Float", r"`\1` is not a number"),
    (r"Value '(.*)' is not a valid bool \(type \w+\)", r"`\1` is neither true nor false"),
    (r"Cannot convert '(?:list|dict)' to string: '(.*)'", r"`\1` is not a text"),
    (r"Invalid value assigned: \w+ is not a ListConfig, list or tuple\.", "a list is needed: [a, b]"),
    (r"Cannot assign \w+ to List.*", "a list is needed: [a, b]"),
    (r"Value .* is incompatible with type hint 'typing.List.*", "a list is needed: [a, b]"),
    (r"Cannot merge DictConfig with ListConfig", "entries (key: value) stand where a list is needed, or the other way"),
    (r"Cannot assign \w+ to Dict.*", "entries are needed: {key: value}"),
    (
        r"(?:Invalid type assigned|Merge error): (\w+) is not a subclass of (\w+)\..*",
        r"entries of \2 are needed, not \1",
    ),
    (r"Structured config of type `(\w+)` has missing mandatory value: (\w+)", r"\1 has no value for `\2`"),
)


def explain(error: Exception) -> str:
    """An error of a composition: the file, the key, the reason, and the nearest valid names."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    first = "" if not str(error).strip() and cause else first_line(error)
    where = re.sub(r"^In '(.+?)': (\w+ raised while composing config:)?", r"conf/\1.yaml: ", first).strip()
    if not isinstance(cause, OmegaConfBaseException):
        return "\n  ".join([where, *_hints(error)])
    parts = [where] if where else []
    if cause.full_key and str(cause.full_key) not in where:
        parts.append(f"at `{cause.full_key}`")
    reason = first_line(cause)
    if reason not in where:
        parts.append(reason)
    if isinstance(cause, MissingMandatoryValue):
        parts.append(f"give it: {cause.full_key}=...")
    elif cause.key is not None and dataclasses.is_dataclass(cause.object_type):
        parts += _valid_keys(str(cause.key), cause.object_type)
    elif "is not in struct" in reason and (parent := cause.parent_node) is not None:
        parts.append(f"it has {', '.join(map(str, parent))}; entries are added in a file of your own, under conf/")
    return "\n  ".join(parts)


def _valid_keys(key: str, node: Any) -> list[str]:
    """What to write instead of a key that a node does not have."""
    valid = KEYS if node is s.RootConf else [f.name for f in dataclasses.fields(node)]
    if node is s.RootConf and key == "experiment":
        return ["the first line of an experiment's file is `# @package _global_`"]
    if key in valid:
        return []
    return [f"valid keys: {', '.join(valid)}{nearest(key, valid)}" if valid else f"{node.__name__} has no keys"]


def _hints(error: Exception) -> list[str]:
    """What Hydra itself proposes, else the keys there are."""
    lines = str(error).splitlines()
    proposed = [line.strip() for line in lines if "Did you mean" in line]
    available = [line.strip() for line in lines if line.startswith("\t") and "=" not in line]
    if unknown := re.search(r"Could not load '(.+)/\w+'", lines[0] if lines else ""):
        return [f"a defaults list names the schema first, as the other files of conf/{unknown[1]}/ do"]
    if available:
        return [f"valid: {', '.join(name for name in available if not name.endswith('_schema'))}"]
    return proposed or [f"valid keys: {', '.join(KEYS)}"]


def nearest(word: str, valid: Sequence[str]) -> str:
    """`; did you mean ...?`, or nothing."""
    near = difflib.get_close_matches(word.strip("'\""), valid, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """What an error says first, in plain words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = lines[0] if lines else type(error).__name__
    for pattern, plain in PLAIN_WORDS:
        words = re.sub(pattern, plain, words)
    return words


def why_unreadable(text: str) -> str:
    """What is wrong with an override that Hydra's grammar refuses; its parser speaks of tokens."""
    key, equals, value = text.partition("=")
    if not equals:
        return "it has no `=`; write key=value"
    if not re.fullmatch(r"\w[\w-]*([./@:]\w[\w-]*)*", key.lstrip("+~")):
        return f"`{key}` is no key; write key=value"
    for quote in "\"'":
        if value.count(quote) % 2:
            return f"a quote ({quote}) is not closed"
    for opening, closing in ("()", "[]", "{}"):
        if value.count(opening) != value.count(closing):
            return f"`{opening}` and `{closing}` do not match"
    if value.startswith(",") or value.endswith(",") or ",," in value:
        return "there is no value beside a comma; write key=a,b"
    if re.fullmatch(r"\w+\(.*\)", value):
        return "functions that list values are choice(a,b), range(start,stop[,step]) and glob(pattern)"
    advice = "quote values that hold `=`, `,`, spaces or letters beyond ASCII"
    return advice if '"' in value else f"{advice}: '{key}=\"{value}\"'"
