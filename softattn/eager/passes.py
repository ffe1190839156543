"""The two passes over the tokens of attention through landmarks, forward and backward.

P = k(X, L) is computed tile by tile. The first pass keeps tiles for the second one up to a fixed
budget; the others are computed again. With R = [M S, |z|], z the last column of M S:

    forward    1. S = P_kᵀ [wV, w]
               2. [N, D, T] = P_q R + c [wV, w, w],   O = N / sign(D) max(|D|, FLOOR · T)
    backward   1. dR = P_qᵀ [dN, dD, dT],   dM = −P_qᵀ diag(dc) P_q
               2. dP = [dN, dD, dT] Rᵀ − dc P (M + Mᵀ) + [wV, w] dSᵀ,   E = −s P ∘ dP,
                  dX = rowsum(E) X − E L,   dL = colsum(E) L − Eᵀ X,   d[wV, w] = c [dN, dD] + P dS

Here c = 1 − P_i M P_iᵀ in self-attention, and 0 in cross-attention, where each row of P_q is
divided by its largest entry. Without a quotient, O = N = P_q M S and S = P_kᵀ V. With a near field
the terms of c are those of ``NearField``.

Ranks that share a sequence add up their S, and their dS = Mᵀ [dN, dD, dT]ᵀ P_q; all else is local.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softattn.common.centering import median_token
from softattn.common.precision import compute_dtype
from softattn.common.products import matmul
from softattn.common.quotient import FLOOR, floored, restored_diagonal, underflow
from softattn.common.ranks import plain_sum_over_ranks
from softattn.eager.near_field import NearField
from softattn.eager.tiles import token_slices

# Bytes of the tiles of P that the first pass keeps for the second one.
_KEPT_BYTES = 2**26


class Landmarks:
    """The landmarks of a call, and tiles of P = k(X, L) from the three products of a distance.

    The kernel does not change when all tokens move, but its exponents lose fewer digits near the
    origin: the median of some landmarks, which outliers do not move, is taken off both sides.
    """

    def __init__(self, landmarks: Tensor, scale: float, dtype: torch.dtype) -> None:
        self.half = scale / 2
        self.dtype = dtype
        self.center = median_token(landmarks).to(dtype)
        self.points = landmarks.to(dtype) - self.center
        self.scaled = (scale * self.points).mT
        self.half_norms = self.half * self.points.square().sum(-1).unsqueeze(-2)

    def centred(self, tokens: Tensor) -> Tensor:
        """Tokens (..., t, d) near the origin, in the dtype of the arithmetic."""
        return tokens.to(self.dtype) - self.center

    def closeness(self, centred: Tensor) -> Tensor:
        """s (x · l − ‖l‖² / 2), (..., t, m): the exponent without the token's own norm."""
        return matmul(centred, self.scaled).sub_(self.half_norms)

    def kernel(self, centred: Tensor, *, shifted: bool) -> Tensor:
        """P, (..., t, m); ``shifted``: with each row divided by its largest entry."""
        exponent = self.closeness(centred)
        if shifted and exponent.shape[-1]:
            # What a row has in common, its own norm, drops out.
            return exponent.sub_(exponent.amax(-1, keepdim=True)).exp_()
        exponent.sub_(self.half * centred.square().sum(-1, keepdim=True))
        return exponent.clamp_max_(0).exp_()


class _Cotangents(NamedTuple):
    """What the first backward pass leaves for the second one, for a tile of queries.

    rows: [dN, dD, dT], or dO without a quotient.
    own: c [dN, dD + dT], the diagonal's share of d[wV, w], or None.
    diagonal: dc, or None.
    tokens: the near field's share of dX, or None.
    """

    rows: Tensor
    own: Tensor | None = None
    diagonal: Tensor | None = None
    tokens: Tensor | None = None


class Passes:
    """The passes over the tokens of one call."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        landmarks: Tensor,
        middle: Tensor,
        weights: Tensor | None,
        padding: Tensor | None,
        scale: float,
        quotient: bool,
        near_field: int,
        group: str | None = None,
    ) -> None:
        dtype = compute_dtype(query, value, landmarks, middle)
        self.query, self.value, self.weights = query, value, weights
        self.key = query if key is None else key
        self.is_self, self.quotient, self.scale = key is None, quotient, scale
        self.near_field = near_field
        self.group = group
        self.padding = None if padding is None else padding[:, None, :, None]
        self.landmarks = Landmarks(landmarks, scale, dtype)
        self.middle = middle.to(dtype)
        columns = landmarks.shape[-2] + value.shape[-1] + 2
        if near_field > 1:
            columns += near_field
        self.query_tiles = token_slices(query, columns, near_field)
        self.key_tiles = token_slices(self.key, columns, near_field)
        self._kept: dict[int | None, Tensor] = {}
        self._room = _KEPT_BYTES

    def sums(self) -> Tensor:
        """S = P_kᵀ [wV, w], or P_kᵀ V without a quotient: (..., m, columns)."""
        sums = _Sum()
        for tile in self.key_tiles:
            p = self._rows_of_queries(tile, keep=True) if self.is_self else self._rows_of_keys(tile)
            sums.add(matmul(p.mT, self._columns(tile)))
        return plain_sum_over_ranks(sums.total, self.group)

    def output(self, sums: Tensor) -> Tensor:
        """O, (..., n_q, d_v), in the dtype of V."""
        factors = self._factors(sums)
        output = _Rows(self.query)
        for tile in self.query_tiles:
            p = self._rows_of_queries(tile)
            products, p_middle = self._products(p, factors)
            rows = products
            if p_middle is not None and self.near_field > 1:
                products = products + self._near_field(tile, p, p_middle).terms()
            if self.quotient:
                rows, sums_of_terms = products[..., :-2], products[..., -2:]
                if p_middle is not None and self.near_field == 1:
                    diagonal = restored_diagonal(_diagonal(p, p_middle))
                    values, ones = self._values(tile)
                    rows = torch.addcmul(rows, diagonal, values)
                    sums_of_terms = torch.addcmul(sums_of_terms, diagonal, ones)
                rows = rows / floored(sums_of_terms[..., :1], sums_of_terms[..., 1:])
            output.put(tile, self._without_padded_queries(tile, rows.to(self.value.dtype)))
        return output.total

    def gradients(
        self, grad: Tensor, output: Tensor, sums: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """dQ, dK, dV, dL, dM and dw, None where it is not ``needed``."""
        factors = self._factors(sums)
        of_landmarks, of_middle = _Sum(), _Sum()
        cotangents, of_factors = self._first_backward_pass(
            grad, output, factors, of_landmarks, of_middle
        )
        if self.quotient:
            of_factors, of_absolute = of_factors[..., :-1], of_factors[..., -1:]
            of_factors[..., -1:].add_(factors[..., -2:-1].sign() * of_absolute)
        of_middle.add(matmul(of_factors, sums.mT))
        of_sums = plain_sum_over_ranks(matmul(self.middle.mT, of_factors), self.group)

        symmetric = self.middle + self.middle.mT
        of_query = _Rows(self.query)
        of_key, of_value, of_weights = _Rows(self.key), _Rows(self.key), _Rows(self.key)
        values_needed, tokens_needed = needed[2] or needed[5], any(needed[i] for i in (0, 1, 3))
        for tile, cotangent in zip(self.query_tiles, cotangents, strict=True):
            p = self._rows_of_queries(tile)
            if self.is_self and values_needed:
                of_values = matmul(p, of_sums)
                self._put_value_gradients(tile, of_values, cotangent.own, of_value, of_weights)
            if tokens_needed:
                of_p = matmul(cotangent.rows, factors.mT)
                if cotangent.diagonal is not None:
                    of_p.sub_(cotangent.diagonal * matmul(p, symmetric))
                if self.is_self:
                    of_p.add_(matmul(self._columns(tile), of_sums.mT))
                of_tokens = self._token_gradients(self._queries(tile), p, of_p, of_landmarks)
                if cotangent.tokens is not None:
                    of_tokens.add_(cotangent.tokens)
                of_query.put(tile, of_tokens)
        for tile in [] if self.is_self else self.key_tiles:
            p = self._rows_of_keys(tile)
            if values_needed:
                of_values = matmul(p, of_sums)
                self._put_value_gradients(tile, of_values, None, of_value, of_weights)
            if tokens_needed:
                of_p = matmul(self._columns(tile), of_sums.mT)
                of_key.put(tile, self._token_gradients(self._keys(tile), p, of_p, of_landmarks))
        found: list[_Rows | _Sum] = [
            of_query,
            of_key,
            of_value,
            of_landmarks,
            of_middle,
            of_weights,
        ]
        return [each.total if need else None for each, need in zip(found, needed, strict=True)]

    def _first_backward_pass(
        self,
        grad: Tensor,
        output: Tensor,
        factors: Tensor,
        of_landmarks: "_Sum",
        of_middle: "_Sum",
    ) -> tuple[list[_Cotangents], Tensor]:
        """The cotangents of each tile, and dR; adds what is restored to dL and dM."""
        cotangents, of_factors = [], _Sum()
        for tile in self.query_tiles:
            p = self._rows_of_queries(tile, keep=True)
            of_rows = self._without_padded_queries(tile, grad[..., tile, :].to(p.dtype))
            found = _Cotangents(of_rows)
            if self.quotient:
                found = self._quotient_gradient(
                    tile, p, factors, of_rows, output[..., tile, :], of_landmarks, of_middle
                )
            cotangents.append(found)
            of_factors.add(matmul(p.mT, found.rows))
        return cotangents, of_factors.total

    def _quotient_gradient(
        self,
        tile: slice,
        p: Tensor,
        factors: Tensor,
        of_output: Tensor,
        output: Tensor,
        of_landmarks: "_Sum",
        of_middle: "_Sum",
    ) -> _Cotangents:
        """The gradient of N / sign(D) max(|D|, FLOOR · T), and of what is restored in them."""
        products, p_middle = self._products(p, factors[..., -2:])
        if p_middle is None:
            return _Cotangents(_through_quotient(products, of_output, output))
        if self.near_field > 1:
            near = self._near_field(tile, p, p_middle)
            rows = _through_quotient(products + near.sums(), of_output, output)
            of_near = near.gradients(rows, self.middle)
            of_middle.add(of_near.middle)
            of_tokens = self._token_gradients(self._queries(tile), p, of_near.p, of_landmarks)
            return _Cotangents(rows, of_near.columns, tokens=of_tokens.add_(of_near.tokens))
        approximated = _diagonal(p, p_middle)
        diagonal, (values, ones) = restored_diagonal(approximated), self._values(tile)
        rows = _through_quotient(torch.addcmul(products, diagonal, ones), of_output, output)
        of_numerator, of_ones = rows[..., :-2], rows[..., -2:-1] + rows[..., -1:]
        of_diagonal = (of_numerator * values).sum(-1, keepdim=True) + of_ones * ones
        of_diagonal.masked_fill_((approximated < 0) | (approximated > 1), 0)
        of_middle.add(matmul(p.mT, -of_diagonal * p))
        return _Cotangents(rows, diagonal * torch.cat([of_numerator, of_ones], -1), of_diagonal)

    def _products(self, p: Tensor, factors: Tensor) -> tuple[Tensor, Tensor | None]:
        """P_q times factors, and in self-attention with a quotient P_q M."""
        if not (self.is_self and self.quotient):
            return matmul(p, factors), None
        columns = factors.shape[-1]
        products = matmul(p, torch.cat([factors, self.middle], -1))
        return products[..., :columns], products[..., columns:]

    def _near_field(self, tile: slice, p: Tensor, p_middle: Tensor) -> NearField:
        columns = self._columns(tile)
        return NearField(self._queries(tile), p, p_middle, columns, self.near_field, self.scale)

    def _token_gradients(self, x: Tensor, p: Tensor, of_p: Tensor, of_landmarks: "_Sum") -> Tensor:
        """The gradient in centred tokens, through their rows of P; adds to that in L."""
        e = of_p.mul_(p).mul_(-self.scale)
        points = self.landmarks.points
        of_landmarks.add(e.sum(-2).unsqueeze(-1) * points - matmul(e.mT, x))
        return e.sum(-1, keepdim=True) * x - matmul(e, points)

    def _put_value_gradients(
        self, tile: slice, of_values: Tensor, own: Tensor | None, value: "_Rows", weights: "_Rows"
    ) -> None:
        """Takes d[wV, w], or dV without a quotient, to V and w."""
        if own is not None:
            of_values = of_values + own
        if not self.quotient:
            value.put(tile, self._without_padded_keys(tile, of_values))
            return
        of_weighted, of_ones = of_values[..., :-1], of_values[..., -1:]
        plain = self._without_padded_keys(tile, self.value[..., tile, :].to(of_values.dtype))
        of_weights = (of_weighted * plain).sum(-1, keepdim=True) + of_ones
        weights.put(tile, self._without_padded_keys(tile, of_weights))
        if self.weights is not None:
            of_weighted = of_weighted * self.weights[..., tile, :]
        value.put(tile, self._without_padded_keys(tile, of_weighted))

    def _factors(self, sums: Tensor) -> Tensor:
        """R = [M S, |z|], or M S without a quotient."""
        product = matmul(self.middle, sums)
        return torch.cat([product, product[..., -1:].abs()], -1) if self.quotient else product

    def _columns(self, tile: slice) -> Tensor:
        """[wV, w], or V without a quotient, 0 for padding."""
        values, ones = self._values(tile)
        if not self.quotient:
            return values
        return torch.cat([values, ones.expand(*values.shape[:-1], 1)], -1)

    def _values(self, tile: slice) -> tuple[Tensor, Tensor]:
        """wV and w, 0 for padding; without a quotient w is 1."""
        values = self.value[..., tile, :].to(self.middle.dtype)
        ones = values.new_ones(values.shape[-2], 1)
        if self.weights is not None:
            ones = self.weights[..., tile, :]
            values = values * ones
        return self._without_padded_keys(tile, values), self._without_padded_keys(tile, ones)

    def _keys(self, tile: slice) -> Tensor:
        """The keys of a tile, centred, 0 for padding."""
        return self._without_padded_keys(tile, self.landmarks.centred(self.key[..., tile, :]))

    def _queries(self, tile: slice) -> Tensor:
        """The queries of a tile, centred; in self-attention the keys."""
        if self.is_self:
            return self._keys(tile)
        return self.landmarks.centred(self.query[..., tile, :])

    def _rows_of_keys(self, tile: slice) -> Tensor:
        """P_k of a tile."""
        return self.landmarks.kernel(self._keys(tile), shifted=False)

    def _rows_of_queries(self, tile: slice, *, keep: bool = False) -> Tensor:
        """P_q of a tile, from an earlier pass where that kept it; ``keep`` it for a later one."""
        if tile.start in self._kept:
            return self._kept.pop(tile.start)
        shifted = self.quotient and not self.is_self
        p = self.landmarks.kernel(self._queries(tile), shifted=shifted)
        size = p.numel() * p.element_size()
        if keep and size <= self._room:
            self._room -= size
            self._kept[tile.start] = p
        return p

    def _without_padded_keys(self, tile: slice, tokens: Tensor) -> Tensor:
        return tokens if self.padding is None else tokens.masked_fill(self.padding[..., tile, :], 0)

    def _without_padded_queries(self, tile: slice, tokens: Tensor) -> Tensor:
        return self._without_padded_keys(tile, tokens) if self.is_self else tokens


def _diagonal(p: Tensor, p_middle: Tensor) -> Tensor:
    """P_i M P_iᵀ, (..., t, 1)."""
    return (p_middle * p).sum(-1, keepdim=True)


def _through_quotient(terms: Tensor, of_output: Tensor, output: Tensor) -> Tensor:
    """[dN, dD, dT] of O = N / sign(D) max(|D|, FLOOR · T) with terms [D, T]."""
    denominator, terms = terms[..., :1], terms[..., 1:]
    divisor = floored(denominator, terms)
    of_numerator = of_output / divisor
    of_divisor = -(of_numerator * output).sum(-1, keepdim=True)
    of_divisor = of_divisor.masked_fill(terms <= underflow(terms.dtype), 0)
    at_floor = denominator.abs() < FLOOR * terms
    of_denominator = of_divisor.masked_fill(at_floor, 0)
    of_terms = FLOOR * divisor.sign() * of_divisor.masked_fill(~at_floor, 0)
    return torch.cat([of_numerator, of_denominator, of_terms], -1)


class _Sum:
    """A sum over tiles, in their order."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum of at least one term."""
        assert self._total is not None
        return self._total

    def add(self, term: Tensor) -> None:
        """Adds a term, which may be changed in place."""
        self._total = term if self._total is None else self._total.add_(term)


class _Rows:
    """Rows of a result that come tile by tile."""

    def __init__(self, like: Tensor) -> None:
        self.tokens = like.shape[-2]
        self._whole: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """All rows, after at least one tile."""
        assert self._whole is not None
        return self._whole

    def put(self, tile: slice, rows: Tensor) -> None:
        """Puts the rows of a tile in their place."""
        if rows.shape[-2] == self.tokens:
            self._whole = rows
            return
        if self._whole is None:
            self._whole = rows.new_empty(*rows.shape[:-2], self.tokens, rows.shape[-1])
        self._whole[..., tile, :] = rows
