"""Whether the sizes of a model have the Hadamard matrices that a method asks for. Pure, no torch."""

from conf.schema import HadamardIncohere, HadamardRotate, MethodConf, NoIncohere, ShapeConf
from orchestrator.shapes import LinearShape, block_kinds, block_linears, head_dim
from workers.arch import ARCHITECTURES
from workers.methods import orders


def rotation_problems(architecture: str, shape: ShapeConf, method: MethodConf) -> list[str]:
    """Every size without a Hadamard matrix, with what has it and what to set instead."""
    needed = _rotated(architecture, shape, method) | _incoherent(architecture, shape, method)
    return [f"{what} of {size}: {orders.missing(size)}; {advice}" for (what, size), advice in needed.items()]


def _rotated(architecture: str, shape: ShapeConf, method: MethodConf) -> dict[tuple[str, int], str]:
    rotate = method.rotate
    if not isinstance(rotate, HadamardRotate):
        return {}
    needed = []
    if rotate.residual:
        needed.append(("a residual stream", shape.hidden_size, "set method.rotate=random"))
    groups = ARCHITECTURES[architecture].groups
    if rotate.heads and any(group.inner == "heads" for group in groups):
        needed.append(("heads", head_dim(shape), "set method.rotate=random"))
    if rotate.intermediate and isinstance(method.incohere, NoIncohere):
        inner = {name for group in groups if group.inner == "intermediate" for name in group.linears}
        sizes = {x.in_features for x in _linears(architecture, shape) if x.name in inner}
        needed += [("an intermediate", size, "set method.rotate.intermediate=false") for size in sorted(sizes)]
    return _missing(needed)


def _incoherent(architecture: str, shape: ShapeConf, method: MethodConf) -> dict[tuple[str, int], str]:
    if not isinstance(method.incohere, HadamardIncohere):
        return {}
    linears = _linears(architecture, shape)
    sizes = {x.in_features for x in linears}
    if method.incohere.sides == "both":
        sizes |= {x.out_features for x in linears}
    return _missing([("a linear's side", size, "set method.incohere=kronecker") for size in sorted(sizes)])


def _linears(architecture: str, shape: ShapeConf) -> list[LinearShape]:
    return [x for index, _ in block_kinds(architecture, shape) for x in block_linears(architecture, shape, index)]


def _missing(needed: list[tuple[str, int, str]]) -> dict[tuple[str, int], str]:
    return {(what, size): advice for what, size, advice in needed if orders.missing(size) is not None}
