"""What the pipeline must know of an architecture, as data. No torch: the planner reads it too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearGroup:
    """Linears of a block that share one input.

    linears: names relative to the block, weights [out, in]. prev_op: the op whose output is that input up to a
    per-channel scale (where AWQ folds), or null. inspect: the smallest module holding the group whose output a search
    compares. residual: `read` when the input is the normed residual stream, `write` when the output is added to it,
    null otherwise (which rotation sides apply). scores: those whose product becomes attention scores. inner: `heads`
    when the input is what attention makes of prev_op's heads, each by itself (a turn of every head folds into both);
    `intermediate` when it comes out of a product or nonlinearity that no turn passes; null otherwise.
    """

    name: str
    linears: tuple[str, ...]
    prev_op: str | None
    inspect: str
    residual: str | None
    scores: tuple[str, ...] = ()
    inner: str | None = None


@dataclass(frozen=True)
class Architecture:
    """Module paths of a causal language model. recipe: bump when the numbers it leads to change."""

    name: str
    recipe: int
    model_class: str
    embedding: str
    rotary: str | None
    blocks: str
    final_norm: str
    head: str
    groups: tuple[LinearGroup, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """All quantized linears of a block, in order."""
        return tuple(name for group in self.groups for name in group.linears)
