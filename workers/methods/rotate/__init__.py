"""Slot rotate: orthogonal matrices that fold into the model. Each module has `draw_orthogonal(size, seed)`."""
