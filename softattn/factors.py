"""The attention matrix in its factors: any part of it without n × n."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softattn.backends.backend import EAGER
from softattn.backends.content_order import content_order
from softattn.backends.nystrom import middle_factor
from softattn.common.centering import median_token
from softattn.common.identity import without_repetition
from softattn.common.key_weights import softmax_query_and_weights
from softattn.common.padding import blank_padding, gather_padding, inverse_permutation
from softattn.common.precision import promoted_under_autocast, without_autocast
from softattn.common.products import matmul
from softattn.common.quotient import QUOTIENTS, floored, restored_diagonal
from softattn.common.validation import (
    NORMALIZATIONS,
    check_attention,
    check_choice,
    check_near_field,
    scale_of,
)
from softattn.eager import gram
from softattn.eager.near_field import NearField
from softattn.eager.order import order_of_rows, permuted
from softattn.pinv import resolve_pinv, ridge_of


@dataclass(frozen=True)
class AttentionFactors:
    """The n_q × n_k attention matrix (P_q M P_kᵀ + R) / D of one call, in its factors.

    All are float32, or float64 for float64 tokens. Rows and columns of padding are 0.

    Attributes:
        query_side: P_q, (batch, heads, n_q, m). In cross-attention with a denominator each row is
            divided by its largest entry, and D with it.
        middle: M, (batch, heads, m, m): A⁺, for ``"landmark"`` scaled on both sides.
        key_side: P_k, (batch, heads, n_k, m), for ``"softmax"`` times the weights of the keys.
        near_field: the entries of R in each row of ``"token"`` and ``"softmax"`` in self-attention,
            (batch, heads, n, b) with b tokens in a near field, or None. With b = 1 they are the
            diagonal.
        near_tokens: the columns of these entries, likewise, int64.
        denominator: D of ``"token"`` and ``"softmax"``, (batch, heads, n_q), or None.
    """

    query_side: Tensor
    middle: Tensor
    key_side: Tensor
    near_field: Tensor | None = None
    near_tokens: Tensor | None = None
    denominator: Tensor | None = None

    def rows(self, indices: Sequence[int] | Tensor) -> Tensor:
        """What some queries give to every key, (batch, heads, len(indices), n_k).

        Args:
            indices: of the queries, negative ones from the end.

        Raises:
            IndexError: there is no such query.
        """
        n_q = self.query_side.shape[2]
        chosen = torch.as_tensor(indices, dtype=torch.long, device=self.query_side.device)
        if chosen.numel() and not -n_q <= int(chosen.min()) <= int(chosen.max()) < n_q:
            raise IndexError(f"indices must be from {-n_q} to {n_q - 1}, got {chosen.tolist()}")
        chosen = chosen % max(n_q, 1)
        with without_autocast(self.query_side.device):
            weights = matmul(matmul(self.query_side[:, :, chosen], self.middle), self.key_side.mT)
        if self.near_field is not None and self.near_tokens is not None:
            weights = weights.scatter_add(
                -1, self.near_tokens[:, :, chosen], self.near_field[:, :, chosen]
            )
        if self.denominator is not None:
            weights = weights / self.denominator[:, :, chosen, None]
        return weights

    def column_sums(self) -> Tensor:
        """What every key receives from all queries together, (batch, heads, n_k).

        In time and memory linear in the tokens.
        """
        share = torch.ones_like(self.query_side[..., 0])
        if self.denominator is not None:
            share = share / self.denominator
        with without_autocast(self.query_side.device):
            received = matmul(
                matmul(matmul(share[..., None, :], self.query_side), self.middle), self.key_side.mT
            )
        sums = received[..., 0, :]
        if self.near_field is None or self.near_tokens is None:
            return sums
        near = self.near_field * share.unsqueeze(-1)
        return sums.scatter_add(-1, self.near_tokens.flatten(2), near.flatten(2))

    def reordered(self, queries: Tensor | None, keys: Tensor) -> "AttentionFactors":
        """The matrix with other orders of its rows and columns.

        Args:
            queries: (batch, n_q), which row comes in each place; None keeps them.
            keys: (batch, n_k), which column comes in each place.
        """
        query_side, denominator = self.query_side, self.denominator
        near_field, near_tokens = self.near_field, self.near_tokens
        if queries is not None:
            rows = queries[:, None, :, None]
            query_side = query_side.take_along_dim(rows, 2)
            near_field, near_tokens = (
                None if each is None else each.take_along_dim(rows, 2)
                for each in (near_field, near_tokens)
            )
            if denominator is not None:
                denominator = denominator.take_along_dim(rows[..., 0], 2)
        if near_tokens is not None:
            places = inverse_permutation(keys)[:, None, :, None]
            near_tokens = places.take_along_dim(near_tokens, 2)
        key_side = self.key_side.take_along_dim(keys[:, None, :, None], 2)
        return AttentionFactors(
            query_side, self.middle, key_side, near_field, near_tokens, denominator
        )


def attention_factors(
    query: Tensor,
    key: Tensor | None,
    landmarks: Tensor,
    *,
    normalization: str = "token",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    scale: float | None = None,
    near_field: int = 1,
    key_padding_mask: Tensor | None = None,
    landmark_padding_mask: Tensor | None = None,
) -> AttentionFactors:
    """The factors of the attention matrix that ``softmax_free_attention`` multiplies values by.

    They take O(n (m + near_field)) memory. The arguments are those of ``softmax_free_attention``.

    Examples:
        >>> tokens = torch.randn(1, 2, 1000, 32)
        >>> landmarks = AvgPoolLandmarks(49)(tokens)
        >>> factors = attention_factors(tokens, None, landmarks, normalization="token")
        >>> factors.rows([0, 999]).shape, factors.column_sums().shape
        (torch.Size([1, 2, 2, 1000]), torch.Size([1, 2, 1000]))
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    query, key = without_repetition(query, key)
    run = check_near_field(near_field, normalization, crossed=key is not None)
    check_attention(
        query,
        key,
        landmarks=landmarks,
        key_padding_mask=key_padding_mask,
        landmark_padding_mask=landmark_padding_mask,
    )
    query, key, landmarks = promoted_under_autocast(query, key, landmarks)
    scale = scale_of(scale, query)
    keys = gather_padding(query if key is None else key, key_padding_mask)
    inverse = resolve_pinv(pinv)
    with without_autocast(query.device):
        landmarks, middle = middle_factor(
            EAGER,
            landmarks,
            normalization=normalization,
            pinv=inverse,
            ridge=ridge_of(inverse, EAGER.name),
            scale=scale,
            landmark_padding_mask=landmark_padding_mask,
        )
        weights = None
        if normalization == "softmax":
            query, weights = softmax_query_and_weights(query, key, scale, key_padding_mask)
        query_side = blank_padding(EAGER.gram(keys, landmarks, scale), key_padding_mask)
        key_side = query_side if weights is None else query_side * weights
        if key is not None:
            query_side = gram(query, landmarks, scale, shifted=normalization in QUOTIENTS)
        if normalization not in QUOTIENTS:
            return AttentionFactors(query_side, middle, key_side)
        z = matmul(middle, key_side.sum(2).unsqueeze(-1))
        denominator, terms = matmul(query_side, torch.cat([z, z.abs()], -1)).unbind(-1)
        near = near_tokens = None
        if key is None:
            ones = torch.ones_like(query_side[..., :1]) if weights is None else weights
            ones = blank_padding(ones, key_padding_mask)
            if run == 1:
                approximated = (matmul(query_side, middle) * query_side).sum(-1, keepdim=True)
                near = restored_diagonal(approximated) * ones
                near_tokens = torch.arange(near.shape[2], device=near.device)[:, None]
                near_tokens = near_tokens.expand(near.shape)
            else:
                order = content_order(
                    EAGER, keys, landmarks, key_padding_mask, landmark_padding_mask
                )
                near, near_tokens = _near_field(
                    keys, landmarks, query_side, middle, ones, order, run, scale
                )
                near = blank_padding(near, key_padding_mask)
            denominator = denominator + near.sum(-1)
            terms = terms + near.abs().sum(-1)
        denominator = floored(denominator, terms)
    return AttentionFactors(query_side, middle, key_side, near, near_tokens, denominator)


def _near_field(
    tokens: Tensor,
    landmarks: Tensor,
    p: Tensor,
    middle: Tensor,
    ones: Tensor,
    order: Tensor,
    run: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The entries of R in each row times ``ones``, and their columns: (batch, heads, n, run)."""
    x = tokens.to(p.dtype) - median_token(landmarks.detach()).to(p.dtype)
    rows, inverse = order_of_rows(order)
    x, p, ones = (permuted(each, rows, inverse) for each in (x, p, ones))
    near = NearField(x, p, matmul(p, middle), ones, run, scale)
    entries = near.remainder * near.columns.mT
    # Columns that the last run lacks are 0, and so are their entries.
    columns = near.in_runs(order.unsqueeze(-1)).mT.expand_as(entries)
    return (
        permuted(near.in_rows(entries), inverse, rows),
        permuted(near.in_rows(columns), inverse, rows),
    )
