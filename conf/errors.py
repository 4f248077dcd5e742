"""The one error of the input room."""


class ConfigError(Exception):
    """What the user wrote cannot be meant. The message says the file, the key and the nearest valid names (exit 2)."""
