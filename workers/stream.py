"""A model held one block at a time.

The whole model exists on the meta device; embedding, rotary and head are read when needed, and each block only while it
is worked on, on the device and on the host alike. Nothing here knows about quantization.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.api import ModelRef
from workers.arch import ARCHITECTURES, Architecture, LinearGroup
from workers.calibration import Shown
from workers.checkpoint import CheckpointReader
from workers.errors import BadInputError, NumericalError
from workers.experts import Experts
from workers.model_files import UNREADABLE, load_config
from workers.module_tensors import ModuleTensors
from workers.taps import tap

TOKENS_PER_BATCH = 2048
COMPUTED = "rotary_emb.inv_freq"  # LLaMA 1 and 2 checkpoints store it in every block; the model computes it


class _FirstBlockReached(Exception):
    """Stops the model's own forward once the input of block 0 is known."""


class _AllReached(Exception):
    """Stops a block's forward once everything that is wanted of it has its input."""


class _Catcher(nn.Module):
    """Stands where block 0 was and keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self.kwargs: dict[str, Any] = {}

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.hidden, self.kwargs = hidden_states, kwargs
        raise _FirstBlockReached


class BlockStream:
    """Block-wise access to a checkpoint in one compute dtype on one device."""

    def __init__(self, model: ModelRef, directory: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        """Builds the model on the meta device. Raises BadInputError when the checkpoint does not fit it."""
        import transformers

        self.architecture: Architecture = ARCHITECTURES[model.architecture]
        self.reader = CheckpointReader(directory)
        self.tensors = ModuleTensors(self.reader, self.architecture)
        self.dtype, self.device = dtype, device
        self.config = load_config(model, directory)
        try:
            with torch.device("meta"):
                self.model: nn.Module = (
                    getattr(transformers, self.architecture.model_class)
                    .from_config(
                        self.config,
                        dtype=dtype,
                        attn_implementation=self.architecture.attention,
                        trust_remote_code=model.trust_remote_code,
                    )
                    .eval()
                )
        except UNREADABLE as error:
            raise BadInputError(
                f"{directory}/config.json: Transformers cannot build its model ({type(error).__name__}: {error}); "
                "restore the config.json that belongs to these weights"
            ) from error
        self._refuse_blocks_beyond_the_config()
        if self.architecture.rotary is not None:
            rotary = self.model.get_submodule(self.architecture.rotary)
            self._replace(self.architecture.rotary, type(rotary)(self.config.get_text_config()).to(device))
        if self.architecture.experts is not None:
            for index, block in enumerate(self._blocks):
                path = f"{self.architecture.blocks}.{index}.{self.architecture.experts}"
                self._replace(path, Experts.like(block.get_submodule(self.architecture.experts)))

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def head_dim(self) -> int:
        """Columns of one attention head; 0 for a model without attention."""
        if self.architecture.attention is None:
            return 0
        text = self.config.get_text_config()
        return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)

    def groups(self, index: int, skip: Collection[str] = ()) -> tuple[LinearGroup, ...]:
        """The groups of block `index`, those of every expert by themselves. skip: what of them keeps its bits."""
        block = self._blocks[index]
        modules = dict(block.named_modules())
        kind = self.architecture.kind_of(modules.__contains__)
        experts = [] if kind.experts is None else modules[kind.experts]
        assert isinstance(experts, list | nn.ModuleList)
        return tuple(group.without(skip) for group in kind.groups_of(len(experts)))

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.architecture.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _refuse_blocks_beyond_the_config(self) -> None:
        prefix = f"{self.architecture.blocks}."
        stored = 1 + max(
            (int(n.removeprefix(prefix).partition(".")[0]) for n in self.tensors.names(prefix)), default=-1
        )
        if stored > self.num_blocks:
            raise BadInputError(
                f"{self.reader.directory}: config.json says {self.num_blocks} blocks, but the weights hold {stored}; "
                "restore the config.json that belongs to these weights"
            )

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, module)

    @contextmanager
    def loaded(self, path: str) -> Iterator[nn.Module]:
        """A submodule with its weights, back on the meta device afterwards."""
        module = self.model.get_submodule(path)
        state = self._state(path)  # not in the try: running out of GPU memory is a RuntimeError too
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise BadInputError(
                f"{self.reader.directory}: `{path}` does not fit config.json: {' '.join(str(error).split())}"
            ) from error
        for name, parameter in module.named_parameters():
            extremes = torch.stack(torch.aminmax(parameter))  # they hold NaN if anything does, and cost no memory
            if not torch.isfinite(extremes).all():
                raise NumericalError("the checkpoint itself holds NaN or Inf", layer=f"{path}.{name}")
        try:
            yield module
        finally:
            module.to("meta")

    def _state(self, path: str) -> dict[str, torch.Tensor]:
        """A submodule's tensors on the device in the compute dtype, names relative to it."""
        source = path
        if path == self.architecture.head and self.config.tie_word_embeddings and not self.tensors.names(f"{path}."):
            source = self.architecture.embedding
        state = self.tensors.read(n for n in self.tensors.names(f"{source}.") if not n.endswith(COMPUTED))
        for name in list(state):  # one after the other, so that both precisions are never held whole
            state[name.removeprefix(f"{source}.")] = state.pop(name).to(self.device, self.dtype)
        return state

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights in the compute dtype."""
        with self.loaded(f"{self.architecture.blocks}.{index}") as module:
            yield module

    @torch.no_grad()
    def first_inputs(
        self, windows: torch.Tensor, shown: Shown | None = None
    ) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Inputs of block 0 for windows [n, L] of token ids: batches [b, L, hidden] on the host, and its kwargs.

        shown: the images in them, which become tokens through the model's own tower in 16 bits or more.

        The kwargs (mask, positions, rotary tables) are the same for every batch: all windows have one length and no
        padding, so they are kept for a batch of one and broadcast.
        """
        catcher = _Catcher()
        first = self._blocks[0]
        kwargs: dict[str, Any] = {}
        batches = []
        self._blocks[0] = catcher
        try:
            with self.loaded(self.architecture.embedding), self._tower(shown):
                for start, size in [(0, 1), *_batches(len(windows), windows.shape[1])]:
                    part = slice(start, start + size)
                    try:
                        self.model(**self._called_with(windows[part].to(self.device), shown, part), use_cache=False)
                    except _FirstBlockReached:
                        assert catcher.hidden is not None
                        kwargs = kwargs or catcher.kwargs
                        batches.append(catcher.hidden.cpu())
        finally:
            self._blocks[0] = first
        return batches[1:], kwargs

    @contextmanager
    def _tower(self, shown: Shown | None) -> Iterator[None]:
        """The modules that make tokens of images, with their weights, where there are images."""
        from transformers import PreTrainedModel

        with ExitStack() as stack:
            for path in self.architecture.tower if shown is not None else ():
                module = self.model.get_submodule(path)
                if isinstance(module, PreTrainedModel):  # its buffers are computed, and not in the files
                    module = type(module)(module.config).eval()
                    self._replace(path, module.to(self.device))
                stack.enter_context(self.loaded(path))
            yield

    def _called_with(self, tokens: torch.Tensor, shown: Shown | None, part: slice) -> dict[str, torch.Tensor]:
        """The model's arguments for windows number `part`: tokens [b, L], or their vectors [b, L, hidden]."""
        if shown is None:
            return {"input_ids": tokens}
        rows = torch.from_numpy(shown.rows[part]).to(self.device)
        is_image = rows >= 0
        images, place = torch.unique(rows[is_image] // shown.per_image, return_inverse=True)
        pixels = torch.from_numpy(shown.pixel_values)[images.cpu()].to(self.device, self.dtype)
        model: Any = self.model
        vectors = model.get_submodule(self.architecture.embedding)(tokens)
        if len(images):
            features = torch.stack(tuple(model.get_image_features(pixel_values=pixels).pooler_output))
            vectors[is_image] = features[place, rows[is_image] % shown.per_image].to(vectors.dtype)
        return {"inputs_embeds": vectors}

    @torch.no_grad()
    def run(
        self,
        block: nn.Module,
        batches: Sequence[torch.Tensor],
        kwargs: dict[str, Any],
        keep: Callable[[int, torch.Tensor], None] | None = None,
    ) -> None:
        """Run a block over batches [b, L, hidden]; outputs go to `keep` (index, tensor on the device), if given."""
        for i, hidden in enumerate(batches):
            output = block(hidden.to(self.device), **kwargs)
            if keep is not None:
                keep(i, output[0] if isinstance(output, tuple) else output)

    @torch.no_grad()
    def feed(
        self, block: nn.Module, batches: Sequence[torch.Tensor], kwargs: dict[str, Any], groups: Collection[LinearGroup]
    ) -> None:
        """Run a block over batches [b, L, hidden] for the taps on its groups' inputs, which must be there already.

        What comes after the inputs of `groups` is not computed, unless one is not reached.
        """
        left: set[str] = set()

        def reach(name: str) -> Callable[..., None]:
            def reached(*_: Any) -> None:
                left.discard(name)
                if not left:
                    raise _AllReached

            return reached

        with ExitStack() as stack:
            for group in groups:
                stack.callback(tap(block, group, reach(group.name)).remove)
            for hidden in batches:
                left.update(group.name for group in groups)
                with suppress(_AllReached):
                    block(hidden.to(self.device), **kwargs)

    @torch.no_grad()
    def log_probabilities(
        self,
        hidden: Sequence[torch.Tensor],
        tokens: torch.Tensor,
        change: Callable[[nn.Module, nn.Module], None] | None = None,
    ) -> torch.Tensor:
        """Natural-log probability of each next token, [n, L - 1] float32, from the last block's outputs.

        change: what is done to the final norm and the head first.
        """
        with self.loaded(self.architecture.final_norm) as norm, self.loaded(self.architecture.head) as head:
            if change is not None:
                change(norm, head)
            targets = tokens[:, 1:, None].to(self.device).split([len(batch) for batch in hidden])
            rows = []
            for batch, target in zip(hidden, targets, strict=True):
                normed = norm(batch.to(self.device)).to(self.dtype)  # a residual stream may be wider than the head
                logits = head(normed)[:, :-1].float()
                rows.append(torch.log_softmax(logits, dim=-1).gather(2, target).squeeze(2).cpu())
        return torch.cat(rows)


def _batches(num_windows: int, length: int) -> list[tuple[int, int]]:
    """(start, size) of batches of at most TOKENS_PER_BATCH tokens; a function of the data alone, so numbers repeat."""
    size = max(1, TOKENS_PER_BATCH // length)
    return [(start, min(size, num_windows - start)) for start in range(0, num_windows, size)]
