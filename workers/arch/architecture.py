"""What the pipeline must know of an architecture, as data. No torch: the planner reads it too."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that share one input. `*` in a table stands for the number of an expert.

    linears: names relative to the block, weights [out, in]. kept: modules with a weight [out, in] that read the same
    input and keep their bits (a router), so that folds must reach them. source: the module whose output's first columns
    are the input, where the linear's weight is used without a call; null: the input that the first of them is called
    with. prev_op: the op whose output is that input up to a per-channel scale (where AWQ folds; where it has more
    outputs, the first ones), or null; groups with one prev_op get one scale. inspect: the smallest module holding the
    group whose output a search compares. residual: `read` when the input is the normed residual stream, `write` when
    the output is added to it, null otherwise (which rotation sides apply). scores: those whose product becomes
    attention scores. inner: `heads` when the input is what attention makes of prev_op's heads, each by itself (a turn
    of every head folds into both); `intermediate` when it comes out of a product or nonlinearity that no turn passes;
    null otherwise. siblings: of one expert's group, the table's name for those of all experts.
    """

    name: str
    linears: tuple[str, ...]
    prev_op: str | None
    inspect: str
    residual: str | None
    scores: tuple[str, ...] = ()
    inner: str | None = None
    kept: tuple[str, ...] = ()
    source: str | None = None
    siblings: str | None = None

    @property
    def readers(self) -> tuple[str, ...]:
        """All that read the input; the first one reads it whole (of experts, each sees a part of the tokens)."""
        return (*self.kept, *self.linears)

    def without(self, skip: Collection[str]) -> "LinearGroup":
        """The group with linears that keep their bits; the very same where none is meant."""
        left = tuple(name for name in self.linears if not is_skipped(name, skip))
        kept = tuple(name for name in self.linears if is_skipped(name, skip))
        return replace(self, linears=left, kept=self.kept + kept) if kept else self

    def of_expert(self, number: int) -> "LinearGroup":
        """The group of one expert; the very same where it is no expert's."""
        if "*" not in self.name:
            return self
        prev_op = None if self.prev_op is None else _numbered(self.prev_op, number)
        return replace(
            self,
            name=_numbered(self.name, number),
            linears=tuple(_numbered(name, number) for name in self.linears),
            prev_op=prev_op,
            inspect=_numbered(self.inspect, number),
            siblings=self.name,
        )


@dataclass(frozen=True)
class BlockKind:
    """Blocks that are built alike.

    marker: a module that only blocks of this kind have, null where all blocks are alike. experts: the container of the
    experts that `*` numbers.
    """

    groups: tuple[LinearGroup, ...]
    marker: str | None = None
    experts: str | None = None

    def groups_of(self, num_experts: int) -> tuple[LinearGroup, ...]:
        """The groups of a block with so many experts, a group for each expert where the table has one for all."""
        found: list[LinearGroup] = []
        for group in self.groups:
            found += [group.of_expert(i) for i in range(num_experts)] if "*" in group.name else [group]
        return tuple(found)


@dataclass(frozen=True)
class Architecture:
    """Module paths of a causal language model. recipe: bump when the numbers it leads to change.

    model_class: the Auto class of Transformers that builds it. attention: the implementation it is built with, null for
    a model without attention. experts: where every block with experts keeps them in fused three-dimensional parameters,
    for which modules of their own are put (workers.experts), or null. renamed: what turns names of stored tensors into
    names of modules, as regular expressions and their replacements, in this order; a name that none matches is a
    module's already. refused: stored names that do not fit, as regular expressions, and what to do about them. tower:
    the modules that make tokens of images, none for a model that only reads; image_writer: the linear of them whose
    outputs these tokens are.
    """

    name: str
    recipe: int
    embedding: str
    rotary: str | None
    blocks: str
    final_norm: str
    head: str
    kinds: tuple[BlockKind, ...]
    model_class: str = "AutoModelForCausalLM"
    attention: str | None = "sdpa"
    experts: str | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    tower: tuple[str, ...] = ()
    image_writer: str | None = None

    @property
    def groups(self) -> tuple[LinearGroup, ...]:
        """The groups of all kinds of blocks, as the tables have them, each once."""
        return tuple(dict.fromkeys(group for kind in self.kinds for group in kind.groups))

    @property
    def linears(self) -> tuple[str, ...]:
        """The names of all linears that are quantized, `*` for the number of an expert, in order."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group.linears))

    def module_name(self, stored: str) -> str:
        """What a stored tensor is called as a module's."""
        for pattern, replacement in self.renamed:
            stored = re.sub(pattern, replacement, stored)
        return stored

    def kind_of(self, has: Callable[[str], bool]) -> BlockKind:
        """Which kind a block is of. has: whether the block has a module of this name."""
        (kind,) = [kind for kind in self.kinds if kind.marker is None or has(kind.marker)]
        return kind


def is_skipped(linear: str, skip: Collection[str]) -> bool:
    """Whether a linear is meant: each of `skip` is a name, or its end after a dot."""
    return any(linear == name or linear.endswith(f".{name}") for name in skip)


def foldable(groups: Iterable[LinearGroup]) -> list[LinearGroup]:
    """The groups that a scale is worth folding into, those with one prev_op as one, in order."""
    merged: dict[str, LinearGroup] = {}
    for group in groups:
        if group.prev_op is None:
            continue
        first = merged.setdefault(group.prev_op, group)
        if first is not group:
            linears, kept = first.linears + group.linears, first.kept + group.kept
            merged[group.prev_op] = replace(first, linears=linears, kept=kept, siblings=None)
    return [group for group in merged.values() if group.linears]


def _numbered(name: str, number: int) -> str:
    return name.replace("*", str(number))
