"""Packed sequences of different lengths."""

import torch
from hypothesis import strategies as st
from support.strategies import normal

lengths_of_batches = st.lists(st.integers(0, 9), max_size=3)


def offsets(lengths, dtype=torch.int64):
    """Where each sequence begins, and the total: (batch + 1,)."""
    return torch.tensor([0, *torch.tensor(lengths, dtype=dtype).cumsum(0).tolist()], dtype=dtype)


def gradients(outputs, inputs, seed=9):
    """The gradients of a random projection of the outputs, 0 where there is none."""
    loss = sum((o * normal(*o.shape, seed=seed + i)).sum() for i, o in enumerate(outputs))
    if not isinstance(loss, torch.Tensor):
        return [torch.zeros_like(tensor) for tensor in inputs]
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
