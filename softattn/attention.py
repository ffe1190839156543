"""The operators on (batch, heads, tokens, features): validate, choose a backend, call it."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from softattn.backends.nystrom import landmark_attention, middle_factor
from softattn.backends.selection import select_backend
from softattn.common.identity import without_repetition
from softattn.common.key_weights import log_weight_range
from softattn.common.precision import promoted_under_autocast, without_autocast
from softattn.common.ranks import DTYPES, Group, check_first_call, name_of_group
from softattn.common.validation import (
    NORMALIZATIONS,
    check_alike,
    check_attention,
    check_causal,
    check_cu_seqlens,
    check_mask,
    check_near_field,
    check_operator_choices,
    scale_of,
)
from softattn.pinv import resolve_pinv, ridge_of


def softmax_free_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    *,
    normalization: str = "token",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    scale: float | None = None,
    near_field: int = 1,
    key_padding_mask: Tensor | None = None,
    landmark_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    group: Group | None = None,
    impl: str = "auto",
) -> Tensor:
    """Gaussian attention through m landmarks, in time and memory linear in the tokens.

    With P_q = k(Q, L), P_k = k(K, L), A = k(L, L) and k(x, y) = exp(−s ‖x − y‖² / 2):

    - ``"token"``: (P_q A⁺ P_kᵀ V + c V) / (P_q A⁺ P_kᵀ 1 + c), weights that sum to 1 for any
      number of tokens, though single ones may be a little below 0. In self-attention
      c = 1 − diag(P_q A⁺ P_kᵀ) puts the exact diagonal in the place of the approximated one; in
      cross-attention it is 0. The exact operator is the row-normalised Gaussian kernel.
      ``near_field`` extends the exact diagonal to blocks.
    - ``"softmax"``: the same with w_j V_j and w_j for V_j and 1, w_j = exp(s ‖k_j‖² / 2). The exact
      operator is softmax(s Q Kᵀ) V where log w has a range of at most 8 over the keys, see
      ``softmax_log_weight_range``; a larger range is scaled down to 8. In cross-attention the keys
      are moved by their mean first, which does not change softmax.
    - ``"none"``: P_q A⁺ P_kᵀ V (SOFT, NeurIPS 2021).
    - ``"landmark"``: P_q D^-1/2 A⁺ D^-1/2 P_kᵀ V with D = diag(A 1) (the symmetric normalisation of
      Softmax-free Linear Transformers, IJCV 2024). Like ``"none"`` it grows with the number of
      tokens.

    The magnitude of a row's denominator is at least 0.03 times the sum of its absolute terms. Rows
    reach this floor where queries, keys and landmarks are so far apart that the approximated row
    sum passes through 0; constant values then come back smaller. Where all terms underflow, the
    output is 0.

    P_q and P_k are computed in tiles, forward and backward. PyTorch's operations keep up to 64 MiB
    of tiles from one pass over the tokens for the next. Kernel and inverse are computed in float32
    (float64 for float64 inputs), also under autocast.

    Args:
        query: Q, (batch, heads, n_q, d), floating point.
        key: K, (batch, heads, n_k, d). None, or ``query`` itself, or another view of all of it, is
            self-attention; anything else, also a copy, is cross-attention.
        value: V, (batch, heads, n_k, d_v).
        landmarks: L, (batch, heads, m, d).
        normalization: ``"token"``, ``"softmax"``, ``"none"`` or ``"landmark"``.
        pinv: what inverts A: a callable from (..., m, m) to (..., m, m) such as a ``NewtonPinv``,
            or one of ``"minimax"`` (the default: A + 0.01 I, converged), ``"soft"`` (the paper's),
            ``"soft_norm_official"`` and ``"transpose"``.
        scale: s, 1/√d by default.
        near_field: b, how many tokens of like content are exact among themselves; 1 is the exact
            diagonal. Tokens are sorted by their nearest landmark, then along the landmarks' main
            direction, and cut into runs of b. Within a run k(Q, Q) takes the place of P_q A⁺ P_qᵀ.
            Costs time in O(n b (d + d_v + m)). Above 1 it is for self-attention with ``"token"``
            alone.
        key_padding_mask: (batch, n_k), True where a token is padding, which is ignored. In
            self-attention the output of padded queries is 0; so is that of a sample that is all
            padding.
        landmark_padding_mask: (batch, m), True where a landmark is padding.
        is_causal: not offered; True raises and says why.
        group: a process group, its name, or a mesh of one dimension, whose ranks share one
            sequence: each gives its part of the keys and values, which may be empty, and the same
            landmarks, and gets the output of its queries. The ranks exchange sums of m × (d_v + 1)
            numbers a head. Each rank gets the gradients of its tokens, and a share of those of the
            landmarks, for the sum of the ranks' losses; see ``softattn.distributed``.
        impl: ``"triton"`` runs the Triton kernels, ``"eager"`` PyTorch's operations, on any device
            and differentiable twice; ``"auto"`` runs Triton where it can, see ``explain_impl``.
            Triton copies tokens whose features are not adjacent in memory.

    Returns:
        O, (batch, heads, n_q, d_v), in the dtype of ``value``.

    Raises:
        TypeError: a tensor is not floating point, a mask is not bool, or dtypes differ, which they
            may under autocast alone: there all are promoted to the widest of them.
        ValueError: shapes do not fit, devices differ, a choice is unknown or cannot run, or there
            is no such near field; or at the first call with a ``group`` its ranks differ in batch,
            heads, features, landmarks, dtype or normalization.
    """
    check_causal(is_causal)
    check_operator_choices(normalization, impl)
    query, key = without_repetition(query, key)
    near_field = check_near_field(near_field, normalization, crossed=key is not None)
    check_attention(
        query,
        key,
        value,
        landmarks,
        key_padding_mask=key_padding_mask,
        landmark_padding_mask=landmark_padding_mask,
    )
    query, key, value, landmarks = promoted_under_autocast(query, key, value, landmarks)
    backend = select_backend(impl, query, value, landmarks, near_field)
    inverse = resolve_pinv(pinv, impl)
    scale = scale_of(scale, query)
    group = name_of_group(group)
    if group is not None:
        _check_ranks(group, query, value, landmarks, normalization)
    with without_autocast(query.device):
        landmarks, middle = middle_factor(
            backend,
            landmarks,
            normalization=normalization,
            pinv=inverse,
            ridge=ridge_of(inverse, backend.name),
            scale=scale,
            landmark_padding_mask=landmark_padding_mask,
        )
        return landmark_attention(
            backend,
            query,
            key,
            value,
            landmarks,
            middle,
            normalization=normalization,
            near_field=near_field,
            scale=scale,
            key_padding_mask=key_padding_mask,
            landmark_padding_mask=landmark_padding_mask,
            group=group,
        )


def softmax_free_attention_varlen(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    normalization: str = "token",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    scale: float | None = None,
    near_field: int = 1,
    landmark_padding_mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """``softmax_free_attention`` within each of the sequences that lie packed one after the other.

    Each sequence gets the output that it would get alone, up to rounding, and the others never
    affect it. Tokens are not padded: memory is linear in their number. The landmarks' Gram
    matrices are inverted in one batch; the tokens are then processed sequence by sequence, so each
    of many short sequences costs a launch of every operation, where padding costs one for all.

    Layout and names are those of the variable-length functions of FlashAttention.

    Args:
        query: Q, (total_q, heads, d), floating point.
        key: K, (total_k, heads, d). None, or ``query`` itself, is self-attention.
        value: V, (total_k, heads, d_v).
        landmarks: L, (batch, heads, m, d), as ``LandmarkSampler.forward_varlen`` gives them.
        cu_seqlens_q: (batch + 1,), int32 or int64: where each sequence of ``query`` begins, and
            total_q. Lengths may be 0. On the device of the tokens it is read back, which waits for
            the device; on the CPU it is not.
        cu_seqlens_k: likewise of ``key``; None in self-attention.
        normalization: see ``softmax_free_attention``.
        pinv: see ``softmax_free_attention``.
        scale: see ``softmax_free_attention``.
        near_field: see ``softmax_free_attention``; runs do not cross from one sequence to another.
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
    check_operator_choices(normalization, impl)
    query, key = without_repetition(query, key)
    near_field = check_near_field(near_field, normalization, crossed=key is not None)
    lengths_q, lengths_k = _check_packed(query, key, value, landmarks, cu_seqlens_q, cu_seqlens_k)
    batch, _, m, _ = landmarks.shape
    check_mask("landmark_padding_mask", landmark_padding_mask, (batch, m), landmarks.device)
    query, key, value, landmarks = promoted_under_autocast(query, key, value, landmarks)
    backend = select_backend(impl, query, value, landmarks, near_field)
    inverse = resolve_pinv(pinv, impl)
    scale = scale_of(scale, query)
    with without_autocast(query.device):
        landmarks, middle = middle_factor(
            backend,
            landmarks,
            normalization=normalization,
            pinv=inverse,
            ridge=ridge_of(inverse, backend.name),
            scale=scale,
            landmark_padding_mask=landmark_padding_mask,
        )
        masks: tuple[Tensor | None, ...] = (None,) * batch
        if landmark_padding_mask is not None:
            masks = landmark_padding_mask.split([1] * batch)
        sequences = zip(
            _sequences(query, lengths_q),
            [None] * batch if key is None else _sequences(key, lengths_k),
            _sequences(value, lengths_k),
            landmarks.split([1] * batch),
            middle.split([1] * batch),
            strict=True,
        )
        outputs = [
            landmark_attention(
                backend,
                *sequence,
                normalization=normalization,
                near_field=near_field,
                scale=scale,
                key_padding_mask=None,
                landmark_padding_mask=mask,
            )
            for sequence, mask in zip(sequences, masks, strict=True)
        ]
    return torch.cat([value[:0], *(rearrange(output, "1 h n d -> n h d") for output in outputs)])


def gaussian_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    *,
    normalize: bool = False,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Exact Gaussian attention k(Q, K) V in O(n²) time and O(n) memory (SOFT, NeurIPS 2021).

    Args:
        query: Q, (batch, heads, n_q, d), floating point.
        key: K, (batch, heads, n_k, d); None, or ``query`` itself, is self-attention.
        value: V, (batch, heads, n_k, d_v).
        normalize: divide each row of the kernel by its sum. Where all keys have one norm this is
            softmax attention with logits s · q · k.
        scale: s in k(x, y) = exp(−s ‖x − y‖² / 2), 1/√d by default.
        key_padding_mask: (batch, n_k), True where a token is padding; in self-attention the
            output of padded queries is 0.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.

    Returns:
        (batch, heads, n_q, d_v), in the dtype of ``value``.

    Raises:
        TypeError: a tensor is not floating point, a mask is not bool, or dtypes differ, which they
            may under autocast alone: there all are promoted to the widest of them.
        ValueError: shapes do not fit, devices differ, or ``impl`` cannot run.
    """
    query, key = without_repetition(query, key)
    check_attention(query, key, value, key_padding_mask=key_padding_mask)
    query, key, value = promoted_under_autocast(query, key, value)
    backend = select_backend(impl, query, value)
    with without_autocast(query.device):
        return backend.gaussian_attention(
            query,
            key,
            value,
            normalize=normalize,
            scale=scale_of(scale, query),
            key_padding_mask=key_padding_mask,
        )


def softmax_log_weight_range(
    query: Tensor,
    key: Tensor | None = None,
    *,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """How unequal the keys' weights of ``normalization="softmax"`` are.

    The range over the keys of log w_j = s ‖k_j‖² / 2, in cross-attention of k_j less the mean key.
    Up to 8 the exact operator is softmax attention. A larger range is scaled down to 8.

    Args:
        query: Q, (batch, heads, n_q, d), floating point.
        key: K, (batch, heads, n_k, d); None, or the query, is self-attention.
        scale: s, 1/√d by default.
        key_padding_mask: (batch, n_k), True where a token is padding.

    Returns:
        (batch, heads), in float32, or float64 for float64 inputs.

    Raises:
        TypeError: a tensor is not floating point, or the mask is not bool.
        ValueError: shapes do not fit, or devices differ.
    """
    query, key = without_repetition(query, key)
    check_attention(query, key, key_padding_mask=key_padding_mask)
    with without_autocast(query.device):
        return log_weight_range(query, key, scale_of(scale, query), key_padding_mask)


def _check_ranks(
    group: str, query: Tensor, value: Tensor, landmarks: Tensor, normalization: str
) -> None:
    """Compares what the ranks of a group must have in common, at the first call with it."""
    batch, heads, m, features = landmarks.shape
    sizes = {
        "batch": batch,
        "heads": heads,
        "landmarks": m,
        "features": features,
        "features of the values": value.shape[-1],
        "dtype": DTYPES.index(query.dtype),
        "normalization": NORMALIZATIONS.index(normalization),
    }
    check_first_call(group, sizes, query.device)


def _sequences(packed: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """(total, heads, d) as one (1, heads, n, d) for each sequence."""
    return [rearrange(tokens, "n h d -> 1 h n d") for tokens in packed.split(lengths)]


def _check_packed(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Checks packed sequences; returns the lengths of those of the queries and of the keys."""
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
    batch = len(landmarks)
    if not len(lengths_q) == len(lengths_k) == batch:
        raise ValueError(
            f"cu_seqlens_q, cu_seqlens_k and landmarks must be of one batch, got {len(lengths_q)}, "
            f"{len(lengths_k)} and {batch} sequences"
        )
    return lengths_q, lengths_k


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
