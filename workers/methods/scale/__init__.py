"""Slot scale: what a group's input channels are multiplied by. Each module has `scales(channels, weights, scale)`."""
