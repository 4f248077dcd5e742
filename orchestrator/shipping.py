"""What of this project travels to the nodes of a cluster, and how a request names what travelled.

A node needs the lock's packages and no checkout: the four packages go with the sweep, shipped models and texts
included. A path into the driver's copy of those becomes `zoo:<name>`, which the node turns into a path of its own.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cell import Cell
from workers import zoo
from workers.api import EvaluateRequest, ModelRef, QuantizeRequest, TextRef

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("conf", "orchestrator", "workers", "kernels")
ZOO = "zoo:"

Request = TypeVar("Request", QuantizeRequest, EvaluateRequest)


def runtime_environment(project: Path) -> dict[str, Any]:
    """Ray's runtime environment that puts the packages first on a worker's path, and nothing else of the checkout.

    A working directory, not `py_modules`: beside those Ray puts the driver's current directory in front, so that a node
    with an older checkout at the same path would run that.
    """
    others = [f"/{path.name}" for path in project.iterdir() if path.name not in PACKAGES]
    return {"working_dir": str(project), "excludes": [*sorted(others), "__pycache__"]}


def outbound(request: Request) -> Request:
    """A request without paths into this copy of the project."""
    return _with_paths(request, _shipped)


def inbound(request: Request) -> Request:
    """A request that has arrived, with the paths of this node."""
    return _with_paths(request, _here)


def inputs(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The files and directories that cells read and that do not travel."""
    found: dict[str, None] = {}
    for cell in cells:
        texts = [cell.calibration_text, *cell.texts.values()]
        for path in (cell.model.directory, _tokenizer(cell.model), *(text.location for text in texts)):
            if path is not None and not _shipped(path).startswith(ZOO):
                found[path] = None
    return tuple(found)


def _with_paths(request: Request, place: Callable[[str], str]) -> Request:
    model = replace(
        request.model,
        directory=None if request.model.directory is None else place(request.model.directory),
        tokenizer=_tokenizer(request.model) or request.model.tokenizer,
    )
    changed: dict[str, Any] = {"model": model}
    if isinstance(request, QuantizeRequest):
        changed["calibration_text"] = _text(request.calibration_text, place)
    else:
        changed["texts"] = {name: _text(text, place) for name, text in request.texts.items()}
    return replace(request, **changed)


def _text(text: TextRef, place: Callable[[str], str]) -> TextRef:
    return text if text.location is None else replace(text, location=place(text.location))


def _tokenizer(model: ModelRef) -> str | None:
    """The tokenizer's directory, absolute; null for none and for a hub id."""
    if model.tokenizer is None or not Path(model.tokenizer).expanduser().is_dir():
        return None
    return str(Path(model.tokenizer).expanduser().absolute())


def _shipped(path: str) -> str:
    inside = Path(path).is_relative_to(zoo.ROOT)
    return f"{ZOO}{Path(path).relative_to(zoo.ROOT).as_posix()}" if inside else path


def _here(path: str) -> str:
    return str(zoo.zoo_path(path.removeprefix(ZOO))) if path.startswith(ZOO) else path
