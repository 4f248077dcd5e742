"""Everything that imports vllm."""
