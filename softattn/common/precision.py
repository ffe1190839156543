"""The precision of the arithmetic, which is float32 or float64 for data of any precision."""

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 where any of the tensors is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def promoted_under_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Under autocast the tensors in the widest of their dtypes, else as they are; None stays.

    Autocast makes projections half precision and norms float32. Tensors that meet in one call are
    promoted by ``torch.promote_types``.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    dtypes = {tensor.dtype for tensor in present}
    if len(dtypes) < 2 or not autocasts(present[0].device):
        return tensors
    if not all(dtype.is_floating_point for dtype in dtypes):
        return tensors
    widest = reduce(torch.promote_types, dtypes)
    return tuple(None if tensor is None else tensor.to(widest) for tensor in tensors)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for ``device``; some, such as "meta", have none."""
    return _has_autocast(device) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast leaves matrix products on ``device`` as they are."""
    # Where it is off already, a context would only be in the way of what is exported.
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def _has_autocast(device: torch.device) -> bool:
    # Early versions of Dynamo do not know the question, so it is asked for other devices alone.
    return device.type in ("cpu", "cuda") or torch.amp.is_autocast_available(device.type)
