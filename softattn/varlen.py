"""Softmax-free attention over sequences of different lengths, packed without padding."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from softattn import fused
from softattn.backends.selection import runs_on_triton
from softattn.common.precision import promoted_under_autocast
from softattn.common.validation import (
    NORMALIZATIONS,
    check_alike,
    check_choice,
    check_cu_seqlens,
    check_mask,
    check_scale,
)
from softattn.eager import attention as eager
from softattn.pinv import resolve_pinv


def softmax_free_attention_varlen(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    normalization: str = "landmark",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    scale: float | None = None,
    landmark_padding_mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """``softmax_free_attention`` within each of the sequences that lie packed one after the other.

    Each answers what it would alone, up to rounding; what the others hold does not change a bit of
    it. There is no padding of the tokens: memory is linear in the tokens that there are. The
    landmarks' Gram matrices are inverted in one batch; the tokens are then worked through sequence
    by sequence, so that many short sequences cost a launch of every operation each, where padding
    would take one for all.

    Layout and names are those of the variable-length functions of FlashAttention.

    Args:
        query: Q, (total_q, heads, d), floating point.
        key: K, (total_k, heads, d). None, or the very tensor that is ``query``, is self-attention.
        value: V, (total_k, heads, d_v).
        landmarks: L, (batch, heads, m, d), as ``LandmarkSampler.forward_varlen`` gives them.
        cu_seqlens_q: (batch + 1,), int32 or int64: where each sequence of ``query`` begins, and
            total_q. Lengths may be 0. On the device of the tokens it is read back, which waits for
            the device; on the CPU it is not.
        cu_seqlens_k: likewise of ``key``; None in self-attention.
        normalization: see ``softmax_free_attention``.
        pinv: see ``softmax_free_attention``.
        scale: see ``softmax_free_attention``.
        landmark_padding_mask: (batch, m), True where a landmark is padding, as those that a
            sequence of fewer than m tokens leaves over.
        impl: see ``softmax_free_attention``.

    Returns:
        O, (total_q, heads, d_v), in the dtype of ``value``.

    Raises:
        TypeError: a tensor is not floating point, dtypes differ outside autocast, the offsets are
            not int32 or int64, or a mask is not bool.
        ValueError: shapes do not fit, offsets do not begin with 0, decrease or do not end with the
            number of tokens, devices differ, or a choice is unknown or cannot run.

    Examples:
        >>> tokens = torch.randn(1000, 2, 32)
        >>> cu_seqlens = torch.tensor([0, 700, 700, 1000])
        >>> landmarks, padding = AvgPoolLandmarks(49).forward_varlen(tokens, cu_seqlens)
        >>> softmax_free_attention_varlen(
        ...     tokens, None, tokens, landmarks, cu_seqlens, landmark_padding_mask=padding
        ... ).shape
        torch.Size([1000, 2, 32])
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    if key is query:
        key = None
    if (key is None) != (cu_seqlens_k is None):
        raise ValueError(
            "cu_seqlens_k says where the sequences of key begin: give both, or neither in "
            f"self-attention; got {'no ' if key is None else ''}key of its own and "
            f"cu_seqlens_k={cu_seqlens_k}"
        )
    keys = query if key is None else key
    _check_shapes(query, keys, value, landmarks)
    lengths_q = check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, len(query), query.device)
    lengths_k = lengths_q
    if cu_seqlens_k is not None:
        lengths_k = check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, len(keys), keys.device)
    batch, _, m, _ = landmarks.shape
    if not len(lengths_q) == len(lengths_k) == batch:
        raise ValueError(
            f"cu_seqlens_q, cu_seqlens_k and landmarks must be of one batch, got {len(lengths_q)}, "
            f"{len(lengths_k)} and {batch} sequences"
        )
    check_mask("landmark_padding_mask", landmark_padding_mask, (batch, m), landmarks.device)
    query, keys, value, landmarks = promoted_under_autocast(query, keys, value, landmarks)
    implementation = fused if runs_on_triton(impl, query, value, landmarks) else eager
    scale = check_scale(scale, query)
    landmarks, middle = implementation.middle_of_landmarks(
        landmarks,
        normalization=normalization,
        pinv=resolve_pinv(pinv, impl),
        scale=scale,
        landmark_padding_mask=landmark_padding_mask,
    )
    queries = _sequences(query, lengths_q)
    answers = [
        implementation.landmark_attention(
            *sequence, normalization=normalization, scale=scale, key_padding_mask=None
        )
        for sequence in zip(
            queries,
            [None] * batch if key is None else _sequences(keys, lengths_k),
            _sequences(value, lengths_k),
            landmarks.split([1] * batch),
            middle.split([1] * batch),
            strict=True,
        )
    ]
    return torch.cat([value[:0], *(rearrange(answer, "1 h n d -> n h d") for answer in answers)])


def _sequences(packed: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """(total, heads, d) as one (1, heads, n, d) for each sequence."""
    return [rearrange(tokens, "n h d -> 1 h n d") for tokens in packed.split(lengths)]


def _check_shapes(query: Tensor, keys: Tensor, value: Tensor, landmarks: Tensor) -> None:
    check_alike(query=query, key=keys, value=value, landmarks=landmarks)
    fits = (
        (query.ndim, keys.ndim, value.ndim, landmarks.ndim) == (3, 3, 3, 4)
        and query.shape[1:] == keys.shape[1:] == landmarks.shape[1::2]
        and value.shape[:2] == keys.shape[:2]
    )
    if not fits:
        raise ValueError(
            "query must be (total_q, heads, d), key (total_k, heads, d), value (total_k, heads, "
            f"d_v) and landmarks (batch, heads, m, d), got {tuple(query.shape)}, "
            f"{tuple(keys.shape)}, {tuple(value.shape)} and {tuple(landmarks.shape)}"
        )
