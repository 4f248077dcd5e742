"""Quantization math: pure functions of tensors. Imports torch, kernels and conf.schema, nothing else of ours."""
