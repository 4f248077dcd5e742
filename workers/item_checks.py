"""What is asked of the items and prompts of a user's own benchmark, whichever file they stand in."""

from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from workers.errors import BadInputError


def is_text(value: Any) -> bool:
    """Whether it is a text that shows something."""
    return isinstance(value, str) and bool(value.strip())


def is_texts(value: Any, least: int) -> bool:
    """Whether it is a list of at least so many texts."""
    return isinstance(value, list) and len(value) >= least and all(map(is_text, value))


def shown_columns(path: Path, prompt: str) -> set[str]:
    """Which columns of an item a prompt shows. Raises BadInputError naming the file it is for when it is no Jinja."""
    try:
        return jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(prompt))
    except jinja2.TemplateSyntaxError as error:
        raise BadInputError(f"prompt of {path}: not Jinja ({error}): {prompt!r}") from error
