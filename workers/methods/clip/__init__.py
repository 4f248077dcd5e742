"""Slot clip: how a grid is fitted. Each module has `fit_grid(weight, clip, scheme, inputs)`."""
