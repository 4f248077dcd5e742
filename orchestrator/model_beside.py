"""What lies beside a model's weights and must fit them: its tokenizer, and the processor of images. No torch.

Only what is certainly wrong is refused; what merely looks wrong is a note of the plan.
"""

import json
from pathlib import Path
from typing import Any

from orchestrator.texts import open_tokenizer
from workers.api import ModelRef
from workers.evaluator import PROCESSOR_FILES

ENDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}  # of tokenizer_config.json -> of config.json


def vocabulary_problem(tokenizer: Path | None, vocab_size: int) -> str | None:
    """Why a tokenizer.json is none of the model's: a word of it has no row in the embedding; null where all have one.

    Tokens added to the vocabulary may lie outside: many a tokenizer has some that no text holds. One that a text does
    hold is refused where its tokens are counted.
    """
    if tokenizer is None:
        return None
    largest = max(open_tokenizer(tokenizer).get_vocab(with_added_tokens=False).values(), default=-1)
    if largest < vocab_size:
        return None
    return (
        f"{tokenizer}: its vocabulary goes up to token {largest}, the model's embedding has {vocab_size} rows: it is "
        "another model's; save the model's own there, or name it: model.tokenizer=<hub id or directory>"
    )


def tokenizer_notes(model: ModelRef, tokenizer: Path | None) -> tuple[str, ...]:
    """What speaks against a tokenizer: ends of texts that the model's config.json has as other tokens."""
    if tokenizer is None or model.directory is None:
        return ()
    wanted, said = _read(Path(model.directory) / "config.json"), _read(tokenizer.parent / "tokenizer_config.json")
    words = open_tokenizer(tokenizer)
    found = []
    for name, key in ENDS.items():
        token, expected = _word(said.get(name)), wanted.get(key)
        number = None if token is None else words.token_to_id(token)
        among = expected if isinstance(expected, list) else [expected]
        if number is not None and expected is not None and number not in among:
            found.append(f"{key}={expected}, but {token} is {number}")
    if not found:
        return ()
    return (f"{tokenizer} may be another model's: {model.name}'s config.json says {'; '.join(found)}",)


def processor_problems(model: ModelRef) -> list[str]:
    """Why images cannot be prepared for a model that lies on this machine, if so. The hub is not asked."""
    if model.directory is None:
        return []
    directory = Path(model.directory)
    # a model in several parts has it beside its image tower
    if any(place.is_file() for name in PROCESSOR_FILES for place in (directory / name, *directory.glob(f"*/{name}"))):
        return []
    return [
        f"{directory}: no {' or '.join(PROCESSOR_FILES)}, so the images of suite.tasks cannot be prepared; copy the "
        "model's processor there: AutoProcessor.from_pretrained(<hub id>).save_pretrained(<directory>)"
    ]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none: what it says is only compared."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _word(written: Any) -> str | None:
    """A special token as tokenizer_config.json has it: a text, or an object with its content."""
    found = written.get("content") if isinstance(written, dict) else written
    return found if isinstance(found, str) else None
