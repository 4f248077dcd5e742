"""A rotation by a matrix that is uniform over all orthogonal ones: any size, and no structure."""

import torch

from workers.methods.orthogonal import DenseOrthogonal, haar


def draw_orthogonal(size: int, seed: int) -> DenseOrthogonal:
    """V [size, size] of a seed: hidden states h become V h."""
    return DenseOrthogonal(haar(size, torch.Generator().manual_seed(seed)))
