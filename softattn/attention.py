"""Softmax-free attention and the exact attention that it approximates: check, choose, call."""

from collections.abc import Callable

from torch import Tensor

from softattn import fused
from softattn.backends.selection import runs_on_triton
from softattn.common.precision import promoted_under_autocast
from softattn.common.validation import (
    NORMALIZATIONS,
    check_causal,
    check_choice,
    check_mask,
    check_scale,
    check_tokens,
    check_values,
)
from softattn.eager import attention as eager
from softattn.pinv import resolve_pinv


def softmax_free_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    landmarks: Tensor,
    *,
    normalization: str = "landmark",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    landmark_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Gaussian attention through m landmarks, in time and memory linear in the tokens.

    With P_q = k(Q, L), P_k = k(K, L), A = k(L, L) and k(x, y) = exp(−s ‖x − y‖² / 2):

    - ``"none"``: P_q A⁺ P_kᵀ V (SOFT, NeurIPS 2021);
    - ``"landmark"``: P_q D^−½ A⁺ D^−½ P_kᵀ V with D = diag(A 1) (the symmetric
      normalisation of Softmax-free Linear Transformers, IJCV 2024). Like ``"none"`` it grows with
      the number of tokens;
    - ``"token"``: weights that sum to 1, whatever the number of tokens, though single ones may be
      a little below 0. P_q A⁺ P_kᵀ V over P_q A⁺ P_kᵀ 1, in self-attention with the exact
      diagonal, 1 for every token with itself, in place of the approximated one. Denominators
      under 1e-3 count as 1e-3, so that in cross-attention a query far from every landmark answers
      something finite.

    No n × m array is ever whole in memory, forward or backward. Kernel and inverse are computed in
    float32 (float64 for float64 inputs), also under autocast.

    Args:
        query: Q, (batch, heads, n_q, d), floating point.
        key: K, (batch, heads, n_k, d). None, or the very tensor that is ``query``, is
            self-attention; anything else, also a copy, is cross-attention.
        value: V, (batch, heads, n_k, d_v).
        landmarks: L, (batch, heads, m, d).
        normalization: ``"none"``, ``"landmark"`` or ``"token"``.
        pinv: what inverts A: a callable from (..., m, m) to (..., m, m) such as a ``NewtonPinv``,
            or one of ``"minimax"`` (the default: A + 0.01 I, converged), ``"soft"`` (the paper's),
            ``"soft_norm_official"`` and ``"transpose"``.
        scale: s, 1/√d by default.
        key_padding_mask: (batch, n_k), True where a token is padding. Padding is never read; in
            self-attention padded queries answer 0; a sample that is all padding answers 0.
        landmark_padding_mask: (batch, m), True where a landmark is padding.
        is_causal: not offered; True raises and says why.
        impl: ``"triton"`` runs the Triton kernels, ``"eager"`` PyTorch's operations, on any device
            and differentiable twice; ``"auto"`` runs Triton where it can, which ``explain_impl``
            tells. Triton takes tokens whose features are adjacent in memory as they are and copies
            others.

    Returns:
        O, (batch, heads, n_q, d_v), in the dtype of ``value``.

    Raises:
        TypeError: a tensor is not floating point, a mask is not bool, or dtypes differ, which they
            may under autocast alone: there all are promoted to the widest of them.
        ValueError: shapes do not fit, devices differ, or a choice is unknown or cannot run.
    """
    check_causal(is_causal)
    check_choice("normalization", normalization, NORMALIZATIONS)
    if key is query:
        key = None
    keys = query if key is None else key
    check_tokens(query=query, key=keys, landmarks=landmarks)
    check_values(value, keys)
    batch, _, n_k, _ = keys.shape
    check_mask("key_padding_mask", key_padding_mask, (batch, n_k), keys.device)
    n_landmarks = (batch, landmarks.shape[2])
    check_mask("landmark_padding_mask", landmark_padding_mask, n_landmarks, keys.device)
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
    return implementation.landmark_attention(
        query,
        None if key is None else keys,
        value,
        landmarks,
        middle,
        normalization=normalization,
        scale=scale,
        key_padding_mask=key_padding_mask,
    )


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
        key: K, (batch, heads, n_k, d); None, or the very tensor that is ``query``, is
            self-attention.
        value: V, (batch, heads, n_k, d_v).
        normalize: divide each row of the kernel by its sum. Where all keys have one norm this is
            softmax attention with logits s · q · k.
        scale: s in k(x, y) = exp(−s ‖x − y‖² / 2), 1/√d by default.
        key_padding_mask: (batch, n_k), True where a token is padding; in self-attention padded
            queries answer 0.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.

    Returns:
        (batch, heads, n_q, d_v), in the dtype of ``value``.

    Raises:
        TypeError: a tensor is not floating point, a mask is not bool, or dtypes differ, which they
            may under autocast alone: there all are promoted to the widest of them.
        ValueError: shapes do not fit, devices differ, or ``impl`` cannot run.
    """
    if key is query:
        key = None
    keys = query if key is None else key
    check_tokens(query=query, key=keys)
    check_values(value, keys)
    batch, _, n_k, _ = keys.shape
    check_mask("key_padding_mask", key_padding_mask, (batch, n_k), keys.device)
    query, keys, value = promoted_under_autocast(query, keys, value)
    implementation = fused if runs_on_triton(impl, query, value) else eager
    return implementation.gaussian_attention(
        query,
        None if key is None else keys,
        value,
        normalize=normalize,
        scale=check_scale(scale, query),
        key_padding_mask=key_padding_mask,
    )
