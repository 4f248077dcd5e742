"""Where and whether a cell runs. Never imports torch, transformers or vllm."""
