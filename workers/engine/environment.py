"""What an engine's process finds in its environment, set before vllm is imported. Nothing here imports it."""

ENVIRONMENT: dict[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine in this process: ready in 2 s instead of 35
    "TORCHDYNAMO_DISABLE": "1",  # or the first log-probabilities wait 4 to 11 s for Inductor
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window as long as the context needs room for one token never computed
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process may have asked CUDA for its devices, after which forks fail
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
