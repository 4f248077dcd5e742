"""What a user may write: YAML groups and the dataclasses they must fit."""
