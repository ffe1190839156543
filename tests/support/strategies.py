"""Attention problems for Hypothesis: shapes, dtypes, scales, masks, landmarks and seeds."""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from softattn import reference
from softattn.backends.backend import EAGER
from softattn.backends.content_order import content_order
from softattn.common.padding import inverse_permutation

NORMALIZATIONS = ("none", "landmark", "token", "softmax")
QUOTIENTS = ("token", "softmax")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Problem:
    """The arguments of one call; ``key`` is None in self-attention."""

    query: Tensor
    key: Tensor | None
    value: Tensor
    landmarks: Tensor
    normalization: str
    scale: float | None
    near_field: int = 1

    @property
    def keys(self) -> Tensor:
        return self.query if self.key is None else self.key

    def tensors(self) -> tuple[Tensor, ...]:
        present = (self.query, self.key, self.value, self.landmarks)
        return tuple(t for t in present if t is not None)

    def to(self, dtype: torch.dtype) -> "Problem":
        return self.map(lambda t: t.to(dtype))

    def map(self, function) -> "Problem":
        return replace(
            self,
            query=function(self.query),
            key=None if self.key is None else function(self.key),
            value=function(self.value),
            landmarks=function(self.landmarks),
        )

    def runs(self) -> Tensor:
        """The number of each token's run of the near field, (batch, heads, n)."""
        if self.near_field == 1:
            return torch.arange(self.query.shape[2]).to(self.query.device)
        order = content_order(EAGER, self.query, self.landmarks)
        return inverse_permutation(order) // self.near_field

    def oracle(self, runs: Tensor, **options) -> Tensor:
        """The output of the oracle in the precision of the arguments."""
        return self._call(reference.softmax_free_attention, runs=runs, **options)

    def solve(self, attention, **options) -> Tensor:
        """The output of ``attention`` for these arguments."""
        if self.near_field > 1:
            options = {"near_field": self.near_field} | options
        return self._call(attention, **options)

    def _call(self, attention, **options) -> Tensor:
        return attention(
            self.query,
            self.key,
            self.value,
            self.landmarks,
            normalization=self.normalization,
            scale=self.scale,
            **options,
        )

    def truth(self) -> Tensor:
        return self.to(torch.float64).oracle(self.runs())

    def plain(self) -> Tensor:
        """The formula as written, in the problem's dtype; half precision rounds at the end."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        return self.to(wide).oracle(self.runs()).to(self.query.dtype)

    def spread(self) -> Tensor:
        """The largest norm of a query, key or landmark."""
        points = torch.cat([self.query, self.keys, self.landmarks], 2)
        return points.double().norm(dim=-1).amax() if points.numel() else torch.tensor(0.0)

    def magnitude(self) -> Tensor:
        """The sums of terms that cancel in the output, |P_q| |A⁺| |P_k|ᵀ |V|.

        Those of a quotient are as large as V at least, however small P_q is: rows are shifted, and
        entries of what is restored are up to 1.
        """
        absolute = replace(
            self.to(torch.float64),
            value=self.value.double().abs(),
            normalization="none" if self.normalization in QUOTIENTS else self.normalization,
        )
        terms = absolute.oracle(self.runs(), inverse=lambda a: torch.linalg.inv(a).abs())
        if self.normalization in QUOTIENTS and terms.numel() and absolute.value.numel():
            terms = terms.clamp(min=self.near_field * absolute.value.amax())
        return terms


def normal(*shape: int, seed: int, spread: float = 1.0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


seeds = st.integers(0, 2**32 - 1)
spreads = st.sampled_from([1e-3, 0.1, 0.5, 1.0, 3.0])


@st.composite
def problems(
    draw,
    dtypes=(torch.float64,),
    normalizations=NORMALIZATIONS,
    cross=st.booleans(),
    tokens=st.integers(0, 14),
    landmarks=st.integers(1, 6),
    scales=st.sampled_from([None, 0.05, 1.0]),
    near_fields=True,
):
    """Problems whose landmarks are tokens, points of their own, or all nearly equal.

    With ``near_fields`` some have one, where "token" is among the normalizations.
    """
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    n_q, m = draw(tokens), draw(landmarks)
    d, d_v = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    seed, spread = draw(seeds), draw(spreads)
    has_near_field = near_fields and "token" in normalizations and draw(st.booleans())
    crossed = not has_near_field and draw(cross)
    n_k = draw(tokens) if crossed else n_q
    query = normal(batch, heads, n_q, d, seed=seed, spread=spread)
    key = normal(batch, heads, n_k, d, seed=seed + 1, spread=spread) if crossed else None
    keys = query if key is None else key
    kind = draw(st.sampled_from(["tokens", "points", "collapsed"]))
    if kind == "tokens" and n_k >= m:
        landmarks = keys[:, :, :m].clone()
    else:
        near = 1e-3 if kind == "collapsed" else spread
        landmarks = normal(batch, heads, m, d, seed=seed + 2, spread=near)
    problem = Problem(
        query=query,
        key=key,
        value=normal(batch, heads, n_k, d_v, seed=seed + 3),
        landmarks=landmarks,
        normalization="token" if has_near_field else draw(st.sampled_from(normalizations)),
        scale=draw(scales),
        near_field=draw(st.integers(2, 8)) if has_near_field else 1,
    )
    return problem.to(draw(st.sampled_from(dtypes)))


@st.composite
def padding_masks(draw, batch: int, tokens: int):
    """(batch, tokens) masks, among them none padded and all padded."""
    density = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    uniform = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(draw(seeds)))
    return uniform < density
