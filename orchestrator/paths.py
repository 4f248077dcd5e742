"""A path as a user wrote it."""

from pathlib import Path

from conf.errors import ConfigError
from workers.zoo import zoo_path

ZOO_PREFIX = "zoo:"
SHOWN = 200  # characters of what is no path


def local_path(key: str, written: str) -> Path:
    """An absolute path on this machine, whether or not something is there; `zoo:<name>` is shipped with the project.

    Raises ConfigError naming `key` for what can be no path.
    """
    if written.startswith(ZOO_PREFIX):
        try:
            return zoo_path(written.removeprefix(ZOO_PREFIX))
        except ValueError as error:
            raise ConfigError(f"{key}={written}: {error}") from error
    if not written.strip():
        raise ConfigError(f"{key} is empty; give a path, absolute or from the current directory")
    if "://" in written:
        raise ConfigError(f"{key}={written}: a path on this machine is needed, not a URL; copy it here first")
    try:
        path = Path(written).expanduser().absolute()
        path.exists()  # asks the system, which refuses names that are too long and directories that are closed
    except (OSError, RuntimeError) as error:  # the second: a home directory that cannot be found
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{key}={written[:SHOWN]}: {reason}") from error
    return path
