"""The near field: the exact kernel within runs of tokens, less what the landmarks make of it.

With X, V, P and P M of one run, x_i and v_j its rows:

    forward    R = clamp(k(X, X) − P M Pᵀ),   near terms = [R V, R 1, |R| 1]
    backward   dR = [dN, dD] [V, 1]ᵀ + sign(R) ∘ (dT 1ᵀ),   d[V, 1] = Rᵀ [dN, dD] + |R|ᵀ [0, dT],
               E = −s k(X, X) ∘ dR,   dX = rowsum(E + Eᵀ) X − (E + Eᵀ) X,
               dP = −(dR P Mᵀ + dRᵀ P M),   dM = −Pᵀ dR P

Tokens come in the order of their content; the last run may be shorter.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from softattn.common.centering import median_token
from softattn.common.compiler import is_exported
from softattn.common.products import matmul
from softattn.common.quotient import restored_block
from softattn.eager.product import log_kernel
from softattn.eager.recomputation import recomputed
from softattn.eager.tiles import token_slices


class NearFieldGradients(NamedTuple):
    """The near field's share of dX, dP, dM and d[V, 1], of one tile."""

    tokens: Tensor
    p: Tensor
    middle: Tensor
    columns: Tensor


class NearField:
    """R of the tokens of one tile.

    Args:
        tokens: X, (..., t, d), near the origin.
        p: P, (..., t, m).
        p_middle: P M, (..., t, m).
        columns: [V, 1], (..., t, d_v + 1), 0 for padding.
        run: tokens of a run. A tile holds whole runs, but for the last one.
        scale: s.
    """

    def __init__(
        self, tokens: Tensor, p: Tensor, p_middle: Tensor, columns: Tensor, run: int, scale: float
    ) -> None:
        self.number, self.run, self.scale = tokens.shape[-2], run, scale
        if not is_exported():
            # Fewer tokens than a run are a run of their own length.
            self.run = min(run, max(self.number, 1))
        tokens, self.p, self.p_middle, self.columns = (
            self.in_runs(rows) for rows in (tokens, p, p_middle, columns)
        )
        # A run can be far from the landmarks, which are near the origin.
        self.tokens = tokens - tokens[..., :1, :]
        self.kernel = _kernel(self.tokens, scale)
        self.approximated = matmul(self.p_middle, self.p.mT)
        self.remainder = restored_block(self.kernel, self.approximated)

    def terms(self) -> Tensor:
        """[R V, R 1, |R| 1], (..., t, d_v + 2)."""
        return self._times(self.columns)

    def sums(self) -> Tensor:
        """[R 1, |R| 1], (..., t, 2)."""
        return self._times(self.columns[..., -1:])

    def _times(self, columns: Tensor) -> Tensor:
        absolute = matmul(self.remainder.abs(), self.columns[..., -1:])
        return self.in_rows(torch.cat([matmul(self.remainder, columns), absolute], -1))

    def gradients(self, cotangents: Tensor, middle: Tensor) -> NearFieldGradients:
        """The gradients from [dN, dD, dT], (..., t, d_v + 2)."""
        cotangents = self.in_runs(cotangents)
        of_remainder = matmul(cotangents[..., :-1], self.columns.mT)
        of_absolute = cotangents[..., -1:] * self.columns[..., -1:].mT
        of_remainder.add_(self.remainder.sign() * of_absolute)
        clamped = self.remainder != self.kernel - self.approximated
        of_remainder = of_remainder.masked_fill_(clamped, 0)
        slope = of_remainder * self.kernel
        slope = (slope + slope.mT).mul_(-self.scale)
        of_tokens = slope.sum(-1, keepdim=True) * self.tokens - matmul(slope, self.tokens)
        of_columns = matmul(self.remainder.mT, cotangents[..., :-1])
        of_columns[..., -1:].add_(matmul(self.remainder.abs().mT, cotangents[..., -1:]))
        of_p_middle = self.in_rows(matmul(of_remainder, self.p))
        of_p = self.in_rows(matmul(of_remainder.mT, self.p_middle))
        return NearFieldGradients(
            tokens=self.in_rows(of_tokens),
            p=-of_p.add_(matmul(of_p_middle, middle.mT)),
            middle=-matmul(self.in_rows(self.p).mT, of_p_middle),
            columns=self.in_rows(of_columns),
        )

    def in_runs(self, rows: Tensor) -> Tensor:
        """(..., t, columns) as (..., runs, run, columns), with zeros after the last token."""
        if is_exported():
            # At least one token and two runs: compilers take a size of 1 for a constant.
            lacking = 2 * self.run - self.number % self.run
            return pad(rows, (0, 0, 0, lacking)).unflatten(-2, (-1, self.run))
        lacking = -self.number % self.run
        if lacking:
            rows = pad(rows, (0, 0, 0, lacking))
        return rows.unflatten(-2, ((self.number + lacking) // self.run, self.run))

    def in_rows(self, runs: Tensor) -> Tensor:
        """The inverse of ``in_runs``."""
        return runs.flatten(-3, -2)[..., : self.number, :]


def near_field_terms(
    tokens: Tensor, landmarks: Tensor, middle: Tensor, columns: Tensor, *, run: int, scale: float
) -> Tensor:
    """``NearField.terms`` of all tokens, which can be differentiated any number of times.

    Args:
        tokens: X, (..., n, d).
        landmarks: L, (..., m, d).
        middle: M, (..., m, m).
        columns: [V, 1], (..., n, d_v + 1), 0 for padding.
        run: tokens of a run.
        scale: s.
    """
    dtype = middle.dtype

    def terms(
        tokens: Tensor, landmarks: Tensor, center: Tensor, middle: Tensor, columns: Tensor
    ) -> tuple[Tensor]:
        tokens, landmarks = tokens.to(dtype) - center, landmarks.to(dtype) - center
        p = log_kernel(tokens, landmarks, scale).exp()
        near = NearField(tokens, p, matmul(p, middle), columns.to(dtype), run, scale)
        return (near.terms(),)

    tile = token_slices(tokens, landmarks.shape[-2] + columns.shape[-1] + run, run)[0]
    size = tokens.shape[-2] if tile.stop is None else tile.stop
    shared = (landmarks, median_token(landmarks.detach()).to(dtype), middle)
    parts = zip(tokens.split(size, -2), columns.split(size, -2), strict=True)
    return torch.cat([recomputed(terms, x, *shared, own)[0] for x, own in parts], -2)


def _kernel(tokens: Tensor, scale: float) -> Tensor:
    """k(X, X) within runs, (..., runs, run, run), exactly 1 on the diagonal."""
    own = torch.eye(tokens.shape[-2], dtype=torch.bool, device=tokens.device)
    return log_kernel(tokens, tokens, scale).masked_fill(own, 0).exp()
