"""Slot tune: what is trained of a block's linears, as differentiable functions of tensors. The loop: workers.tuning."""
