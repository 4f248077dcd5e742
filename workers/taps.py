"""Where the inputs of a group of linears can be seen as a block runs."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workers.arch import LinearGroup


def tap(block: nn.Module, group: LinearGroup, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `see` with the group's inputs [..., in] whenever they are made; hooks are called in the order of taps."""
    reader = block.get_submodule(group.readers[0])
    if group.source is None:
        return reader.register_forward_pre_hook(lambda _, args: see(args[0]))
    assert isinstance(reader, nn.Linear)
    columns = reader.in_features
    return block.get_submodule(group.source).register_forward_hook(lambda _, __, output: see(output[..., :columns]))
