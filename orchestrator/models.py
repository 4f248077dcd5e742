"""From what the user named as a model to a resolved checkpoint: directory or commit, content hash, shape."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.schema import ModelConf, ShapeConf
from orchestrator.config_shapes import architecture_of, shape_from_config, size_problem
from orchestrator.engine_choice import require
from orchestrator.paths import local_path
from orchestrator.shapes import ARCHITECTURES
from workers.api import ModelRef
from workers.errors import PrerequisiteError
from workers.hub import HUB_ERRORS
from workers.model_parts import folders, tokenizer_folder, weight_folders

OTHER_LAYOUTS = {  # a key that only the config.json of another code's files has -> what to do about them
    "ssm_cfg": "files of Mamba's original code; take the -hf repository, or convert them with Transformers' "
    "models/mamba/convert_mamba_ssm_checkpoint_to_pytorch.py",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
IDENTITY_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")


@dataclasses.dataclass(frozen=True)
class ResolvedModel:
    """A checkpoint and its sizes. revision_known is False for a hub model planned without asking the hub."""

    ref: ModelRef
    shape: ShapeConf
    revision_known: bool


def resolve_model(conf: ModelConf, *, online: bool) -> ResolvedModel:
    """Resolve a model. online=False (planning) asks no hub: its fingerprint is then provisional.

    Raises ConfigError for a directory that cannot be used, PrerequisiteError when the hub does not answer.
    """
    if conf.shape is not None and (problem := size_problem(conf.shape)):
        raise ConfigError(f"model.shape.{problem}")
    directory = _local_directory(conf)
    if directory is not None:
        return _resolve_directory(conf, directory)
    return _resolve_hub(conf, online=online)


def tokenizer_file(model: ModelRef) -> Path | None:
    """The tokenizer.json with which tokens can be counted before a cell starts, where this machine has one."""
    source = model.tokenizer or model.directory
    file = tokenizer_folder(Path(source)) / "tokenizer.json" if source else None
    return file if file is not None and file.is_file() else None


def _local_directory(conf: ModelConf) -> Path | None:
    path = local_path("model.repo", conf.repo)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ConfigError(f"model.repo={conf.repo}: a file; give the model's directory")
    if not _is_hub_id(conf.repo):
        raise ConfigError(
            f"model.repo={conf.repo}: no such directory, and not a hub id of the form organisation/name either; "
            f"looked for {path}"
        )
    return None


def _is_hub_id(written: str) -> bool:
    return written.count("/") == 1 and not written.startswith(("/", ".", "~"))


def _tokenizer(conf: ModelConf) -> str | None:
    """What the model's tokenizer is loaded from, a directory as an absolute path; null: from beside its weights."""
    if conf.tokenizer is None:
        return None
    path = local_path("model.tokenizer", conf.tokenizer)
    if path.is_dir():
        _require_tokenizer(path)
        return str(path.resolve())
    if not _is_hub_id(conf.tokenizer):
        raise ConfigError(
            f"model.tokenizer={conf.tokenizer}: no such directory, and no hub id of the form organisation/name either"
        )
    return conf.tokenizer


def _require_tokenizer(directory: Path) -> None:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(
            f"{directory}: no {' or '.join(TOKENIZER_FILES)}; save the model's tokenizer there, or name another one: "
            "model.tokenizer=<hub id or directory>"
        )


def _resolve_directory(conf: ModelConf, directory: Path) -> ResolvedModel:
    config = _read_config(directory)
    _refuse_quantized(config, directory)
    for folder in weight_folders(directory):
        _require_safetensors(folder)
    if conf.tokenizer is None:
        _require_tokenizer(tokenizer_folder(directory))
    ref = ModelRef(
        name=_name(conf, directory.name),
        repo=conf.repo,
        architecture=_architecture(conf, config, directory),
        fingerprint=_content_hash(directory),
        directory=str(directory),
        tokenizer=_tokenizer(conf),
        trust_remote_code=conf.trust_remote_code,
    )
    return ResolvedModel(ref, conf.shape or shape_from_config(config, directory), revision_known=True)


def _resolve_hub(conf: ModelConf, *, online: bool) -> ResolvedModel:
    revision = conf.revision
    config: dict[str, Any] | None = None
    if online:
        revision, config = _ask_hub(conf)
    if config is not None:
        _refuse_quantized(config, Path(conf.repo))
    shape = conf.shape or (shape_from_config(config, Path(conf.repo)) if config else None)
    if shape is None:
        raise ConfigError(
            f"model.repo={conf.repo}: its shape is known only to the hub; to plan it, start from a model of its size: "
            f"model=llama2-7b model.repo={conf.repo}"
        )
    ref = ModelRef(
        name=_name(conf, conf.repo.split("/")[-1]),
        repo=conf.repo,
        architecture=_architecture(conf, config, Path(conf.repo)) if config else conf.architecture or "unknown",
        fingerprint=f"{conf.repo}@{revision or 'unresolved'}",
        revision=revision,
        tokenizer=_tokenizer(conf),
        trust_remote_code=conf.trust_remote_code,
    )
    return ResolvedModel(ref, shape, revision_known=online)


def _ask_hub(conf: ModelConf) -> tuple[str, dict[str, Any]]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        commit = HfApi().model_info(conf.repo, revision=conf.revision).sha
        config = json.loads(Path(hf_hub_download(conf.repo, "config.json", revision=commit)).read_text())
    except GatedRepoError as error:
        raise PrerequisiteError(
            f"{conf.repo} is gated: accept its terms on the hub, then run `hf auth login` on every node"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"model.repo={conf.repo}: the hub has no such repository (or it is private)") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"model.revision={conf.revision}: {conf.repo} has no such revision") from error
    except HUB_ERRORS as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ConfigError(f"model.repo={conf.repo}: it has no config.json, so it is no model") from error
        raise PrerequisiteError(
            f"the hub did not answer for {conf.repo} ({type(error).__name__}); check the network, or give a local "
            "copy: model.repo=<directory>"
        ) from error
    assert commit is not None
    return commit, config


def _name(conf: ModelConf, fallback: str) -> str:
    """`model=hf` takes the name of the directory or repository, so that tables tell models apart."""
    return fallback if conf.name == "hf" else conf.name


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{directory}: no config.json; a Hugging Face model directory is needed") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return config


def _architecture(conf: ModelConf, config: dict[str, Any], where: Path) -> str:
    """Which table of linears a model has. Raises ConfigError when its config.json names none and the user neither."""
    if conf.architecture is not None:
        require("model.architecture", conf.architecture, tuple(ARCHITECTURES))
        return conf.architecture
    for key, advice in OTHER_LAYOUTS.items():
        if key in config:
            raise ConfigError(f"{where}/config.json: {advice}")
    name = architecture_of(config)
    if name is None:
        raise ConfigError(
            f"{where}/config.json: model_type={json.dumps(config.get('model_type'))} is none of "
            f"{', '.join(ARCHITECTURES)}; for a model that is built like one of them: model.architecture=<name>"
        )
    return name


def _refuse_quantized(config: dict[str, Any], where: Path) -> None:
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
    raise ConfigError(
        f"{where}/config.json: already quantized (quantization_config, quant_method {method}); give the 16-bit "
        "checkpoint it was made from"
    )


def _require_safetensors(directory: Path) -> None:
    if any(path.is_file() for path in directory.glob("*.safetensors")):
        return
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise ConfigError(
            f"{directory}: only pickled weights (.bin), which can run code when loaded. Convert them once:\n"
            f"  python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{directory}', "
            f"use_safetensors=False).save_pretrained('{directory}-safetensors')\""
        )
    foreign = sorted(path.name for path in directory.glob("*.gguf"))
    there = f"; {foreign[0]} is quantized already, give the 16-bit checkpoint it was made from" if foreign else ""
    raise ConfigError(f"{directory}: no .safetensors file{there}")


def _content_hash(directory: Path) -> str:
    try:
        return content_hash(directory)
    except OSError as error:
        raise ConfigError(f"{error.filename or directory}: cannot be read ({error.strerror})") from error


def content_hash(directory: Path) -> str:
    """sha256 over the names and contents of the files that make up a checkpoint."""
    digest = hashlib.sha256()
    paths = [path for folder in folders(directory) for path in sorted(folder.iterdir())]
    for path in (p for p in paths if p.suffix in IDENTITY_SUFFIXES and p.is_file()):
        with path.open("rb") as file:
            name = path.relative_to(directory).as_posix()
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"
