"""The median of a few tokens, near which distances by products lose the fewest digits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, launching
from softattn.kernels.launching import CHANGING, block_of, ceil_div, rows_argument

_TOKENS, _MOST = 8, 16
_CONFIGURATION = configurations.Configuration(_MOST, 0, warps=4, stages=1)


def median_token(tokens: Tensor) -> Tensor:
    """The median of each feature over at most 15 tokens of each pair, evenly apart.

    Args:
        tokens: (batch, heads, n, d).

    Returns:
        (batch, heads, d), zeros where there are no tokens.
    """
    batch, heads, n, d = tokens.shape
    median = torch.empty((batch, heads, d), device=tokens.device, dtype=tokens.dtype)
    apart = max(n // _TOKENS, 1)
    launching.launch(
        _median_token,
        (batch * heads,),
        dict(
            **rows_argument("x", tokens),
            median_ptr=median,
            heads=heads,
            apart=apart,
            number=ceil_div(n, apart),
            D=d,
            BLOCK_N=_MOST,
            BLOCK_D=block_of(d),
        ),
        _CONFIGURATION,
    )
    return median


@triton.jit(do_not_specialize=CHANGING)
def _median_token(
    x_ptr, x_batch, x_head, x_row, median_ptr, heads, apart, number,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The entry of each feature that as many others precede as half of the tokens."""
    pair = tl.program_id(0).to(tl.int64)
    x_ptr += pair // heads * x_batch + pair % heads * x_head
    token = tl.arange(0, BLOCK_N)
    feature = tl.arange(0, BLOCK_D)
    # [BLOCK_N, BLOCK_D]. NaN comes last, as in a sort, and so do tokens that there are not.
    x = _load_or_infinity(x_ptr, token[:, None], feature[None, :], apart, number, x_row, D)
    before = tl.zeros([BLOCK_N, BLOCK_D], tl.int32)
    for i in range(BLOCK_N):
        other = _load_or_infinity(x_ptr, i, feature, apart, number, x_row, D)[None, :]
        earlier = (other == x) & (i < token)[:, None]
        before += ((other < x) | earlier).to(tl.int32)
    median = tl.sum(tl.where(before == number // 2, x, 0.0), 0)
    median = tl.where(number > 0, median, 0.0)
    tl.store(median_ptr + pair * D + feature, median, mask=feature < D)


@triton.jit
def _load_or_infinity(ptr, token, feature, apart, number, row, D: tl.constexpr):
    at = ptr + (token * apart).to(tl.int64) * row + feature
    x = tl.load(at, mask=(token < number) & (feature < D), other=float("inf"))
    return tl.where(x == x, x, float("inf"))
