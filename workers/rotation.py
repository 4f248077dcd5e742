"""Slot rotate over a model: hidden states h become V h, and every weight that touches them is turned to fit.

A norm that only divides by the root mean square commutes with V once its gain is in the linears behind it. So with the
gain g of the norm before: readers W become W diag(g) V^T, writers V W, the embedding E V^T, the head W diag(g) V^T.
What makes tokens of images is a writer too. The values of each head become R v, undone by the linear that reads them.
(Ashkboos et al. 2024.) The model computes what it did. Each weight is turned in float64 and rounded once, to the
compute dtype.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import HadamardRotate, RandomRotate, RotateConf
from workers.api import QuantizeRequest
from workers.arch import Architecture, LinearGroup
from workers.errors import BadInputError
from workers.methods.errors import MethodError
from workers.methods.orthogonal import BlockDiagonal, Orthogonal
from workers.methods.registry import stage_module
from workers.seeds import seed_of
from workers.stream import BlockStream

CHUNK = 2**24  # numbers that are held in float64 at a time


class Rotation:
    """The rotation of one model; it leaves everything as it is where the method has none.

    The groups must name every weight that reads or writes the residual stream, a router's too.
    """

    def __init__(
        self, conf: RotateConf, architecture: Architecture, hidden_size: int, head_dim: int, seed: int
    ) -> None:
        """Raises BadInputError for a size that cannot be rotated."""
        self._conf, self._architecture, self._head_dim, self._seed = conf, architecture, head_dim, seed
        folded = conf if isinstance(conf, HadamardRotate | RandomRotate) else None
        self._residual = self._draw(hidden_size, "residual") if folded and folded.residual else None
        has_heads = any(group.inner == "heads" for group in architecture.groups)
        self._heads = folded is not None and folded.heads and has_heads
        if self._heads:
            self._draw(head_dim, "heads")  # a size that has none is better known now than after the first block

    @classmethod
    def of(cls, request: QuantizeRequest, stream: BlockStream) -> "Rotation":
        """The rotation a request asks for; the same whenever it is asked."""
        hidden_size = stream.config.get_text_config().hidden_size
        return cls(request.method.rotate, stream.architecture, hidden_size, stream.head_dim, request.seed)

    def _draw(self, size: int, name: str) -> Orthogonal:
        module = importlib.import_module(stage_module(self._conf))
        try:
            drawn: Orthogonal = module.draw_orthogonal(size, seed_of(self._seed, name))
        except MethodError as error:
            raise BadInputError(f"method.rotate: {error}; set method.rotate=random") from error
        return drawn

    def states(self, hidden: Tensor) -> Tensor:
        """Hidden states [b, L, hidden], turned; the very same where nothing turns them."""
        if self._residual is None:
            return hidden
        return _turned(hidden.flatten(0, 1), self._residual).reshape(hidden.shape)

    @torch.no_grad()
    def turn_block(self, block: nn.Module, groups: Sequence[LinearGroup], prefix: str) -> None:
        """Fold into a block in place. prefix: its full name, which the seed of its heads' turn comes from."""
        heads = BlockDiagonal(self._draw(self._head_dim, f"{prefix}.heads"), self._head_dim) if self._heads else None
        gains: dict[str, Tensor] = {}
        for group in groups:
            residual = None if group.residual is None else self._residual
            gain = None
            if residual is not None and group.residual == "read":
                assert group.prev_op is not None, f"{group.name} reads the residual stream without a norm"
                gains[group.prev_op] = gain = _gain(block.get_submodule(group.prev_op))
            for name in group.readers:
                within = heads if self._turns_heads(group, name) else None
                _turn_linear(block.get_submodule(name), residual, gain, within, writes=group.residual == "write")
        for folded in gains.values():
            folded.fill_(1)

    def _turns_heads(self, group: LinearGroup, linear: str) -> bool:
        makes = any(g.inner == "heads" and g.prev_op == linear for g in self._architecture.groups)
        return self._heads and (makes or group.inner == "heads")

    def words(self, group: LinearGroup, linear: str) -> str | None:
        """For the report of a linear: that something is folded into it, or null."""
        if self._turns_heads(group, linear) or (self._residual is not None and group.residual is not None):
            return f"rotate={stage_module(self._conf).rpartition('.')[2]}"
        return None

    @torch.no_grad()
    def turn_head(self, norm: nn.Module, head: nn.Module) -> None:
        """Fold into the final norm and the head in place."""
        if self._residual is None:
            return
        gain = _gain(norm)
        _turn_linear(head, self._residual, gain, None, writes=False)
        gain.fill_(1)

    def outside(self, stream: BlockStream) -> dict[str, Tensor]:
        """Everything outside the blocks that is turned, by full name; the head too where the embedding was its own."""
        if self._residual is None:
            return {}
        paths = self._architecture
        with stream.loaded(paths.embedding) as embedding:
            (weight,) = embedding.parameters()
            turned = {f"{paths.embedding}.weight": _turned(weight.data, self._residual)}
        if paths.image_writer is not None:
            with stream.loaded(paths.image_writer) as writer:
                _turn_linear(writer, self._residual, None, None, writes=True)
                turned |= {f"{paths.image_writer}.{name}": value.detach() for name, value in writer.named_parameters()}
        with stream.loaded(paths.final_norm) as norm, stream.loaded(paths.head) as head:
            self.turn_head(norm, head)
            for path, module in ((paths.final_norm, norm), (paths.head, head)):
                turned |= {f"{path}.{name}": parameter.detach() for name, parameter in module.named_parameters()}
        return {name: tensor.cpu() for name, tensor in turned.items()}

    @property
    def config(self) -> dict[str, Any]:
        """What else config.json must say: embedding and head are turned with different gains, so they are two."""
        return {} if self._residual is None else {"tie_word_embeddings": False}


def _gain(norm: nn.Module) -> Tensor:
    """The gain of a norm that has nothing else, [hidden]."""
    ((name, gain),) = norm.named_parameters()
    assert name == "weight", f"{type(norm).__name__}.{name} is no gain"
    return gain.data


def _turn_linear(
    linear: nn.Module, residual: Orthogonal | None, gain: Tensor | None, heads: BlockDiagonal | None, *, writes: bool
) -> None:
    """Turn a linear's side that faces the residual stream, after the gain; and by heads the side that does not."""
    parameters = dict(linear.named_parameters(recurse=False))
    weight, bias = parameters["weight"].data, parameters.pop("bias", None)
    assert list(parameters) == ["weight"], f"{type(linear).__name__}: not a linear, it has {', '.join(parameters)}"
    if residual is not None or heads is not None:
        turned = _turned(weight.mT if writes else weight, residual, gain, heads)
        parameters["weight"].data = (turned.mT if writes else turned).contiguous()
    outputs = residual if writes else heads
    if bias is not None and outputs is not None:
        bias.data = _turned(bias.data[None], outputs)[0]


def _turned(
    rows: Tensor, along: Orthogonal | None, gain: Tensor | None = None, across: BlockDiagonal | None = None
) -> Tensor:
    """[n, m]: every row times the gain and turned along its m entries, every column across its n. Float64 within."""
    whole = 1 if across is None else across.size  # a head is not cut
    parts = []
    for part in rows.split(max(whole, CHUNK // rows.shape[1] // whole * whole)):
        wide = part.double()
        if gain is not None:
            wide = wide * gain
        if along is not None:
            wide = along.apply(wide)
        if across is not None:
            wide = across.apply(wide.mT).mT
        parts.append(wide.to(rows.dtype))
    return torch.cat(parts)
