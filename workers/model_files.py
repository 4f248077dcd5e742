"""A resolved model as files on this node, and the small objects read from them."""

from pathlib import Path
from typing import Any

from filelock import FileLock

from workers.api import ModelRef
from workers.errors import BadInputError
from workers.hub import HUB_ERRORS, causes, hub_failure, is_outage, is_refusal
from workers.model_parts import tokenizer_folder

WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
UNREADABLE = (ValueError, OSError, KeyError, TypeError, AttributeError)  # what loaders raise on an odd file


def local_directory(model: ModelRef) -> Path:
    """The model's directory; downloads a hub commit once per node, under a lock.

    Raises TransientError, and PrerequisiteError when the hub refuses this node the repository.
    """
    if model.directory is not None:
        return Path(model.directory)
    from huggingface_hub import constants, snapshot_download

    lock = Path(constants.HF_HUB_CACHE) / f".{model.repo.replace('/', '--')}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=list(WANTED)))
    except HUB_ERRORS as error:
        if isinstance(error, OSError) and not _is_the_hub_s(error):
            raise
        raise hub_failure(f"{model.repo}@{model.revision}", error) from error


def load_tokenizer(model: ModelRef, directory: Path) -> Any:
    """The model's own tokenizer. Raises BadInputError when its files are damaged.

    One named by its hub id may raise as `local_directory` does.
    """
    from transformers import AutoTokenizer

    source = model.tokenizer or str(tokenizer_folder(directory))
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        if not isinstance(error, UNREADABLE) and type(error) is not Exception:  # which is what the Rust library raises
            raise
        if _is_the_hub_s(error):
            raise hub_failure(f"the tokenizer {source}", error) from error
        raise BadInputError(f"{source}: tokenizer cannot be loaded ({error})") from error


def load_config(model: ModelRef, directory: Path) -> Any:
    """The transformers configuration. Raises BadInputError when transformers does not know it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from workers.models import register

    register()
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=model.trust_remote_code)
    except (*UNREADABLE, StrictDataclassError) as error:
        raise BadInputError(f"{directory}/config.json: {error}") from error


def _is_the_hub_s(error: BaseException) -> bool:
    """Whether the hub or the network is behind an error; else it is the disk's, or a defect."""
    return any(is_refusal(cause) or is_outage(cause) for cause in causes(error))
