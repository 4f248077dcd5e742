"""The shipped minis as the pipeline takes them."""

from pathlib import Path

import yaml
from tokenizers import Tokenizer

from conf import register
from workers.api import ModelRef
from workers.zoo import zoo_path


def mini_ref(name: str) -> ModelRef:
    """As `model=<name>` resolves."""
    written = yaml.safe_load((register.ROOT / "model" / f"{name.replace('_', '-')}.yaml").read_text(encoding="utf-8"))
    directory: Path = zoo_path(name)
    return ModelRef(name, str(directory), written["architecture"], "a content hash", directory=str(directory))


def text_tokens(name: str) -> list[int]:
    """A text of the zoo, tokenized as all minis do."""
    tokenizer = Tokenizer.from_file(str(zoo_path("mini_llama/tokenizer.json")))
    return list(tokenizer.encode(zoo_path(f"mini_llama/{name}.txt").read_text(encoding="utf-8")).ids)
