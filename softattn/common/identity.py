"""Whether two arguments are one tensor, which makes a call self-attention."""

import torch
from torch import Tensor


def without_repetition(query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The query, and the key of cross-attention or None in self-attention.

    Self-attention is no key, the query itself, or another view of the whole query: the same
    storage, offset, shape and strides. Wrappers that detach or wrap each argument on its own,
    such as hooks, activation checkpointing and ``torch.vmap``, keep these. A copy is another
    tensor.
    """
    if key is None or not is_one_tensor(query, key):
        return query, key
    # One of two views may be detached: the other one takes the gradient.
    return (query if query.requires_grad else key), None


def is_one_tensor(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are one, or view the same elements in the same order."""
    if first is second:
        return True
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    strided = first.layout == second.layout == torch.strided
    if torch.compiler.is_compiling() or not strided:
        # Compilers recognise one object, and their tensors have no storage.
        return False
    (first, levels), (second, others) = _unwrapped(first), _unwrapped(second)
    return bool(
        levels == others
        and first.dtype == second.dtype
        and first.device == second.device
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.storage_offset() == second.storage_offset()
        and torch._C._is_alias_of(first, second)  # type: ignore[attr-defined]
    )


def _unwrapped(tensor: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """What torch.func has wrapped, and the level and batch dimension of each wrapper."""
    functorch = torch._C._functorch
    levels = []
    while functorch.is_functorch_wrapped_tensor(tensor):
        levels.append((functorch.maybe_get_level(tensor), functorch.maybe_get_bdim(tensor)))
        tensor = functorch.get_unwrapped(tensor)
    return tensor, levels
