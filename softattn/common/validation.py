"""Checks of arguments. An error says what was expected, what came and what to do."""

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import SupportsIndex

import torch
from torch import Tensor

from softattn.common.precision import autocasts

NORMALIZATIONS = ("none", "landmark", "token", "softmax")
IMPLEMENTATIONS = ("auto", "eager", "triton")
ADVICE_ON_MASKS = (
    "mask < 0 is True at the padding of an additive mask, mask == 0 at the padding of a mask that "
    "is 1 at tokens"
)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_operator_choices(normalization: object, impl: object) -> None:
    """Raises ValueError unless both are choices that ``softmax_free_attention`` knows."""
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("impl", impl, IMPLEMENTATIONS)


def check_near_field(near_field: object, normalization: str, *, crossed: bool) -> int:
    """The near field as an int.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below 1, or above 1 where there is no near field.
    """
    if not isinstance(near_field, SupportsIndex):
        raise TypeError(f"near_field must be an int, got {near_field!r}")
    run = operator.index(near_field)
    if run < 1:
        raise ValueError(f"near_field must be at least 1, got {run}")
    if run > 1 and (crossed or normalization != "token"):
        got = "cross-attention" if crossed else f"normalization={normalization!r}"
        raise ValueError(
            f"near_field={run} computes the weights among neighbouring tokens exactly. This is "
            "offered for self-attention with normalization='token', where a token's neighbours "
            f"are queries and keys, got {got}; use near_field=1"
        )
    return run


def check_causal(is_causal: bool) -> None:
    """Raises ValueError where causal attention is asked for."""
    if is_causal:
        raise ValueError(
            "causal attention is not offered: a landmark is pooled over the whole sequence, so "
            "every token would see the future through it; use is_causal=False"
        )


def scale_of(scale: float | None, query: Tensor) -> float:
    """The scale of the squared distance, 1/√d where none is given."""
    return 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else check_scale(scale)


def check_scale(scale: object) -> float:
    """Raises ValueError unless ``scale`` is a positive finite number."""
    if not (isinstance(scale, Real) and 0 < float(scale) < math.inf):
        raise ValueError(f"scale must be a positive finite number or None, got {scale!r}")
    return float(scale)


def as_sizes(name: str, value: object, dimensions: int) -> tuple[int, ...]:
    """An int, repeated for each dimension, or a sequence of ints, as a tuple.

    Raises:
        TypeError: neither.
    """
    sizes = (value,) * dimensions if isinstance(value, SupportsIndex) else value
    if isinstance(sizes, Sequence) and all(isinstance(size, SupportsIndex) for size in sizes):
        # The compilers' symbols are ints to them, and would become numbers.
        return tuple(
            size if isinstance(size, (int, torch.SymInt)) else operator.index(size)  # type: ignore[misc]
            for size in sizes
        )
    raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")


def check_floating(name: str, tensor: object) -> None:
    """Raises TypeError unless ``tensor`` is a tensor of real floating-point numbers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be floating point (float64, float32, bfloat16 or float16), got "
            f"{tensor.dtype}; convert it, for example with .float()"
        )


def check_tokens(**tensors: Tensor) -> None:
    """Checks (batch, heads, tokens, d) tensors that meet in one kernel."""
    check_alike(**tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(f"{name} must be (batch, heads, tokens, features), got shape {shape}")
    outer = [(batch, heads, features) for batch, heads, _, features in shapes.values()]
    if any(shape != outer[0] for shape in outer):
        raise ValueError(
            f"{_listed(list(shapes))} must agree in batch, heads and features, got shapes "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )


def check_alike(**tensors: Tensor) -> None:
    """Checks that all are floating point, of one dtype unless under autocast, on one device."""
    for name, tensor in tensors.items():
        check_floating(name, tensor)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 and not any(autocasts(tensor.device) for tensor in tensors.values()):
        raise TypeError(
            f"{_listed(list(tensors))} must have one dtype, got "
            + ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
            + "; convert them to one, for example with .to(query.dtype)"
        )
    if len({tensor.device for tensor in tensors.values()}) > 1:
        raise ValueError(
            f"{_listed(list(tensors))} must be on one device, got "
            + ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        )


def check_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None = None,
    landmarks: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
    landmark_padding_mask: Tensor | None = None,
) -> None:
    """Checks the tensors of one call on (batch, heads, tokens, features); no key is the query."""
    keys = query if key is None else key
    tokens = {"query": query, "key": keys}
    check_tokens(**tokens if landmarks is None else {**tokens, "landmarks": landmarks})
    if value is not None:
        check_values(value, keys)
    batch, _, n_k, _ = keys.shape
    check_mask("key_padding_mask", key_padding_mask, (batch, n_k), keys.device)
    if landmarks is not None:
        places = (batch, landmarks.shape[2])
        check_mask("landmark_padding_mask", landmark_padding_mask, places, keys.device)


def check_values(value: Tensor, key: Tensor) -> None:
    """Checks that each key has a value."""
    check_alike(key=key, value=value)
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            "value must be (batch, heads, tokens, d_v) with the batch, heads and tokens of the "
            f"keys, {tuple(key.shape[:3])}; got shape {tuple(value.shape)}"
        )


def check_mask(
    name: str, mask: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> None:
    """Checks a padding mask of a given shape."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"{name} must be a bool tensor, True where a token is padding, got {kind}: "
            f"{ADVICE_ON_MASKS}"
        )
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must be (batch, tokens) = {shape}, got shape {tuple(mask.shape)}")
    if mask.device != device:
        raise ValueError(f"{name} must be on {device} as the tokens are, got {mask.device}")


def check_cu_seqlens(
    name: str, cu_seqlens: object, total: int, device: torch.device
) -> tuple[int, ...]:
    """The lengths of sequences that lie one after the other, from where they begin and end."""
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        kind = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {kind}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"{name} must be (batch + 1,), got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device.type != "cpu" and cu_seqlens.device != device:
        raise ValueError(
            f"{name} must be on the CPU or on {device} as the tokens are, got {cu_seqlens.device}"
        )
    ends = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(ends))
    if ends[0] != 0 or ends[-1] != total or min(lengths, default=0) < 0:
        raise ValueError(
            f"{name} must begin with 0, never decrease, and end with the number of tokens, "
            f"{total}; got {ends}"
        )
    return lengths


def _listed(names: list[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
