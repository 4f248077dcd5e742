"""A checkpoint's tensors by the names that modules have, whatever names the files have.

Hub checkpoints keep the names of the code they were first written with, and Transformers renames them as it loads. Here
too; what we write has the names of the source again, so that every tool reads it as it reads the source.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from workers.arch import Architecture
from workers.checkpoint import CheckpointReader
from workers.errors import BadInputError


class ModuleTensors:
    """Names are modules' unless said otherwise."""

    def __init__(self, reader: CheckpointReader, architecture: Architecture) -> None:
        """Raises BadInputError for a name that cannot be used, with what to do, and for two that are the same."""
        self._reader = reader
        self._stored: dict[str, str] = {}
        for stored in reader.files:
            for pattern, advice in architecture.refused:
                if re.search(pattern, stored):
                    raise BadInputError(f"{reader.directory}: `{stored}`: {advice}")
            name = architecture.module_name(stored)
            if name in self._stored:
                raise BadInputError(
                    f"{reader.directory}: `{stored}` and `{self._stored[name]}` are both {name}; remove one"
                )
            self._stored[name] = stored

    def names(self, prefix: str) -> list[str]:
        """The tensors below a module: names that start with `prefix`."""
        return [name for name in self._stored if name.startswith(prefix)]

    def stored(self, name: str) -> str:
        """A tensor's name in the files; one that they do not have keeps its own."""
        return self._stored.get(name, name)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors on the CPU, in the dtype of the file. Raises BadInputError naming file and tensor."""
        wanted = {self.stored(name): name for name in names}
        return {wanted[stored]: tensor for stored, tensor in self._reader.read(wanted).items()}
