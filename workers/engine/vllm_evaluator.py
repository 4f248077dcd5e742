"""vLLM as an evaluator: one engine in this process, kept warm; weights of the same model are swapped in place.

Import only with `workers.engine.environment.ENVIRONMENT` set. Importing vllm and starting an engine change the process
for good (torch.set_num_threads does nothing afterwards, LD_PRELOAD is set): quantize in another one.
"""

import gc
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMServerError
from vllm.inputs import EmbedsPrompt, TokensPrompt
from vllm.logprobs import FlatLogprobs
from vllm.outputs import RequestOutput

from workers.api import Canary
from workers.canary import CanaryDifference, canary_difference, require_parity
from workers.engine.language_model import WORKER_EXTENSION, language_model_config
from workers.errors import BadInputError, EngineError
from workers.evaluator import (
    ImagePrompt,
    Loaded,
    TokenScores,
    chunk_tokens,
    engine_dtype,
    read_config,
    sees_images,
    text_config,
    timed,
)
from workers.image_embeddings import ImageEmbeddings
from workers.models import register

# model_type -> why its weights are never swapped in a live engine (vLLM 0.32 on a CPU, against a Transformers forward).
# Kinds that are not listed are swapped where the canary agrees.
NOT_RELOADABLE: dict[str, str] = {
    "deepseek": "reload_weights leaves the fused experts wrong by 1 nat on average",
    "deepseek_v2": "reload_weights leaves the fused experts wrong by 0.7 nats on average",
    "mamba2": "reload_weights is wrong by 1.7 nats on average in bfloat16",
    "mixtral": "reload_weights leaves the fused experts wrong by 1.7 nats on average",
}
# model_type -> engine arguments without which its log-probabilities are wrong.
REQUIRED_ARGUMENTS: dict[str, dict[str, Any]] = {
    # The CPU's rotary operator fails on the 3-D queries of latent attention: 0.4 nats on average.
    "deepseek_v2": {"compilation_config": {"custom_ops": ["-rotary_embedding"]}},
}
# A reload may differ from its manifest this many times as much as the engine's own first checkpoint did: the noise of
# this model in this dtype is measured, not assumed. Beyond it the engine is rebuilt, which costs seconds.
RELOAD_NOISE = 3.0
# Entries of config.json that say nothing of the engine.
COSMETIC = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
CPU_CACHE_BYTES = 2**28  # for keys and values, at least; vLLM's own default is nearly all memory
CACHED_WINDOWS = 2
MAX_SEQUENCES = 256

# Its warm-up of chat templates fails without a tokenizer, with a stack trace in every log. A filter, because vLLM sets
# the levels of its loggers again when an engine starts.
logging.getLogger("vllm.renderers.base").addFilter(lambda record: record.levelno >= logging.ERROR)


class VllmEvaluator:
    """Implements workers.evaluator.Evaluator and, for models that see, ShowsImages."""

    name = "vllm"
    version: str = vllm.__version__

    def __init__(self, *, device: str, tensor_parallel_size: int = 1, gpu_memory_utilization: float = 0.9) -> None:
        """device: cpu | cuda. gpu_memory_utilization: part of each GPU's memory for weights, keys and values."""
        self.max_length = 0
        self._device = device
        self._tensor_parallel_size = tensor_parallel_size
        self._gpu_memory_utilization = gpu_memory_utilization
        self._llm: LLM | None = None
        self._identity = ""
        self._noise = math.nan
        self._embeddings: ImageEmbeddings | None = None
        self._no_images: BadInputError | None = None

    def load(self, directory: Path, dtype: str, canary: Canary | None, max_length: int) -> Loaded:
        """See the protocol. A reload that the canary rejects is followed by a rebuild; `swap` says so."""
        config = read_config(directory)
        dtype = engine_dtype(dtype, config)
        loaded = self._load_language(directory, config, dtype, canary, max_length)
        self._load_embeddings(directory, dtype)
        return loaded

    def _load_embeddings(self, directory: Path, dtype: str) -> None:
        """While the directory is there; a suite without images does not fail for want of a processor."""
        self._embeddings, self._no_images = None, None
        try:
            self._embeddings = ImageEmbeddings(directory, getattr(torch, dtype), torch.device(self._device))
        except BadInputError as error:
            self._no_images = error

    def _load_language(
        self, directory: Path, config: dict[str, Any], dtype: str, canary: Canary | None, max_length: int
    ) -> Loaded:
        identity = _identity(config, dtype, max_length)
        seconds: dict[str, float] = {}
        if canary is not None and self._reloadable(config, identity):
            difference = self._reload(directory, canary, seconds)
            if difference.relative <= RELOAD_NOISE * self._noise:
                return Loaded("reloaded", difference.mean, seconds)
        swap = "fresh" if self._llm is None else "rebuilt"
        self.close()
        with timed(seconds, "engine"), self._engine_errors(f"load {directory}"):
            register()
            _supply_operators(config)
            gc.freeze()  # vLLM collects garbage three times as it starts, half a second each in a process of this size
            self._llm = LLM(**self._arguments(directory, config, dtype, max_length))
        self.max_length, self._identity, self._noise = max_length, identity, math.nan
        if canary is None:
            return Loaded(swap, math.nan, seconds)
        with timed(seconds, "canary"):
            difference = canary_difference(self, canary)
        if not difference.allowed(dtype):
            self.close()
        require_parity(self, directory, dtype, difference)
        self._noise = difference.relative
        return Loaded(swap, difference.mean, seconds)

    def score(self, prompts: Sequence[Sequence[int]]) -> list[TokenScores]:
        """See the protocol. Of equal largest logits (1.8 % of tokens in bfloat16) the one that top-k names counts."""
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, flat_logprobs=True, detokenize=False)
        return [_token_scores(output.prompt_logprobs) for output in self._run(_tokens(prompts), params)]

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_tokens: Sequence[int]
    ) -> list[list[int]]:
        """See the protocol."""
        params = SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=list(stop_tokens), detokenize=False
        )
        outputs = [list(output.outputs[0].token_ids) for output in self._run(_tokens(prompts), params)]
        return [tokens[:-1] if tokens and tokens[-1] in stop_tokens else tokens for tokens in outputs]

    def answer(self, prompts: Sequence[ImagePrompt], max_new_tokens: int) -> list[str]:
        """See the protocol."""
        if self._no_images is not None:
            raise self._no_images
        assert self._embeddings is not None, "load a checkpoint first"
        tokenizer = self._embeddings.processor.tokenizer
        params = SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=[tokenizer.eos_token_id], detokenize=False
        )
        requests = [EmbedsPrompt(prompt_embeds=self._embeddings.of(prompt)) for prompt in prompts]
        outputs = [output.outputs[0].token_ids for output in self._run(requests, params)]
        return [str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip() for tokens in outputs]

    def close(self) -> None:
        """End the engine, a half-built one too; the next `load` starts one in this process."""
        core = None if self._llm is None else self._llm.llm_engine.engine_core
        self._llm = self._embeddings = None
        if core is None:
            cleanup_dist_env_and_memory()
        else:
            core.shutdown()  # which cleans up, too

    def _reloadable(self, config: dict[str, Any], identity: str) -> bool:
        return (
            self._llm is not None
            and identity == self._identity
            and text_config(config)["model_type"] not in NOT_RELOADABLE
        )

    def _reload(self, directory: Path, canary: Canary, seconds: dict[str, float]) -> CanaryDifference:
        assert self._llm is not None
        with timed(seconds, "reload"), self._engine_errors(f"swap in the weights of {directory}"):
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        with timed(seconds, "canary"):
            return canary_difference(self, canary)

    def _arguments(self, directory: Path, config: dict[str, Any], dtype: str, max_length: int) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": str(directory),
            "dtype": dtype,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # stop tokens are ours alone
            "max_model_len": max_length + 1,  # vLLM wants room for one token, though scoring never computes it
            "max_num_batched_tokens": chunk_tokens(config),
            "max_num_seqs": MAX_SEQUENCES,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if self._device == "cpu":
            windows = CACHED_WINDOWS * _window_bytes(config, dtype, max_length)
            arguments["kv_cache_memory_bytes"] = max(CPU_CACHE_BYTES, windows)
        else:
            arguments["gpu_memory_utilization"] = self._gpu_memory_utilization
        if self._tensor_parallel_size > 1:
            # workers of this node, so that they inherit the GPUs this process was granted
            arguments |= {"tensor_parallel_size": self._tensor_parallel_size, "distributed_executor_backend": "mp"}
        if sees_images(config):
            arguments |= {
                "hf_overrides": language_model_config,
                "enable_prompt_embeds": True,
                "worker_extension_cls": WORKER_EXTENSION,
            }
        return arguments | REQUIRED_ARGUMENTS.get(text_config(config)["model_type"], {})

    def _run(self, requests: Sequence[TokensPrompt | EmbedsPrompt], params: SamplingParams) -> list[RequestOutput]:
        assert self._llm is not None, "load a checkpoint first"
        with self._engine_errors(f"score {len(requests)} prompts"):
            return self._llm.generate(requests, params, use_tqdm=False)

    @contextmanager
    def _engine_errors(self, doing: str) -> Iterator[None]:
        """An engine that raised is not used again. Running out of memory and CUDA's own errors keep their kind."""
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (RuntimeError, ValueError, NotImplementedError, AssertionError, KeyError, VLLMServerError) as error:
            self.close()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(f"vLLM {self.version} could not {doing}: {reason}") from error


def _supply_operators(config: dict[str, Any]) -> None:
    if config["model_type"] == "mamba":
        from workers.engine import mamba_on_cpu  # here: no other model needs what it imports

        mamba_on_cpu.supply_operators()


def _tokens(prompts: Sequence[Sequence[int]]) -> list[TokensPrompt]:
    return [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]


def _identity(config: dict[str, Any], dtype: str, max_length: int) -> str:
    """Checkpoints with one identity can share an engine."""
    engine = {key: value for key, value in config.items() if key not in COSMETIC}
    return json.dumps([engine, dtype, max_length], sort_keys=True)


def _window_bytes(config: dict[str, Any], dtype: str, max_length: int) -> int:
    """Keys and values of one window; 0 for a model without attention."""
    model = text_config(config)
    heads = model.get("num_attention_heads")
    if heads is None:
        return 0
    head_dim = model.get("head_dim") or model["hidden_size"] // heads
    kv_heads = model.get("num_key_value_heads") or heads
    size = 4 if dtype == "float32" else 2
    return int(2 * model["num_hidden_layers"] * kv_heads * head_dim * max_length * size)


def _token_scores(flat: Any) -> TokenScores:
    """Two entries for each position after the first: the prompt's token, then the largest."""
    assert isinstance(flat, FlatLogprobs)
    logprobs = np.asarray(flat.logprobs, dtype=np.float64)
    token_ids = np.asarray(flat.token_ids, dtype=np.int64)
    return TokenScores(logprobs=logprobs[::2], is_argmax=token_ids[::2] == token_ids[1::2])
