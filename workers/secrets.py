"""Secrets of a node: files that hold tokens, named in `cluster.secrets`, into this process's environment.

Only names and paths travel with a request; what is in the files never leaves the node.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from conf.errors import ConfigError
from workers.errors import PrerequisiteError
from workers.redaction import secret_values


def check_secrets(secrets: Mapping[str, str]) -> None:
    """Raise ConfigError for what cannot be a variable's name and a file's path, without repeating the latter."""
    for name, path in secrets.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"cluster.secrets: `{name}` is no name of an environment variable, such as HF_TOKEN")
        if not path.startswith("/"):
            raise ConfigError(
                f"cluster.secrets.{name} is the absolute path of a file that holds the value, on every node, such as "
                f"/run/secrets/{name.lower()}; what is given is no such path (a value itself must never stand in a "
                "configuration: it would be recorded)"
            )


def load_secrets(secrets: Mapping[str, str]) -> None:
    """Set each variable to what its file holds on this node. Raises PrerequisiteError naming every unusable file."""
    if problems := secret_problems(secrets):
        raise PrerequisiteError("; ".join(problems))
    os.environ.update({name: _value(path) for name, path in secrets.items()})


def secret_problems(secrets: Mapping[str, str]) -> list[str]:
    """Why files cannot be used on this node, each with what next."""
    problems = []
    for name, path in secrets.items():
        try:
            reason = None if _value(path) else "it is empty"
        except UnicodeDecodeError:
            reason = "it is not text"
        except OSError as error:
            reason = error.strerror
        if reason is not None:
            problems.append(
                f"cluster.secrets.{name}: {os.uname().nodename} cannot use {path} ({reason}); put the file with the "
                f"value there, readable for user {os.getuid()}, or leave the entry out"
            )
    return problems


def known_secrets(secrets: Mapping[str, str]) -> list[str]:
    """The secrets of this process's environment, those that `load_secrets` put there among them."""
    return secret_values(os.environ, secrets)


def _value(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip()
