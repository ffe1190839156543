"""Sums over the cells of a grid whose tokens several ranks share.

Each rank adds up what it has of each cell; the sums of all ranks are added by one all-reduce.
"""

import math
from collections.abc import Sequence
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor, nn

from softattn.common.compiler import apply, is_compiled
from softattn.common.precision import compute_dtype
from softattn.common.ranks import plain_sum_over_ranks, size_and_rank, sum_over_ranks
from softattn.landmarks.cells import cells_of_grid
from softattn.landmarks.parts import (
    Parts,
    columns_of_table,
    even_runs,
    exchange_parts,
    parts_of_table,
    table_as_tensor,
    within,
)


def sums_of_cells(
    tokens: Tensor,
    grid: Sequence[int] | None,
    padding: Tensor | None,
    *,
    num_landmarks: list[int],
    num_prefix_tokens: int,
    group: str,
) -> tuple[Tensor, Tensor]:
    """The sum over each cell, (batch, heads, m, d), and its number of tokens, (batch, m).

    m is the product of ``num_landmarks``; cells that a small grid does not have are empty. The
    arguments are those of ``AvgPoolLandmarks.forward_over_ranks``.
    """
    if is_compiled():
        sizes = None if grid is None else list(grid)
        options = (sizes, num_landmarks, num_prefix_tokens, group)
        total, counts, _ = apply(_SumsOfCells, tokens, padding, *options)
        return total, counts
    parts = exchange_parts(tokens, grid, padding, group=group, num_prefix_tokens=num_prefix_tokens)
    own = _own_sums(tokens, padding, parts, num_landmarks)
    return _sums_and_sizes(sum_over_ranks(own, group), tokens, parts, num_landmarks)


def _own_sums(
    tokens: Tensor, padding: Tensor | None, parts: Parts, num_landmarks: list[int]
) -> Tensor:
    """What this rank adds to each cell, (batch, heads, m, d).

    On a map with padding a column follows: how many tokens it adds.
    """
    tokens = parts.without_prefix(tokens, 2)
    padding = None if padding is None else parts.without_prefix(padding, 1)
    if parts.masked and len(parts.grid) == 1:
        sums = _sums_of_padded_runs(tokens, parts, num_landmarks[0])
    else:
        if parts.masked:
            tokens = _with_ones(tokens, padding)
        sums = _sums_on_grid(tokens, parts, cells_of_grid(_asked(num_landmarks), parts.grid))
    missing = math.prod(num_landmarks) - sums.shape[2]
    return nn.functional.pad(sums, (0, 0, 0, missing))


def _sums_and_sizes(
    total: Tensor, tokens: Tensor, parts: Parts, num_landmarks: list[int]
) -> tuple[Tensor, Tensor]:
    """The sums of all ranks, and the number of tokens in each cell."""
    batch, d, m = tokens.shape[0], tokens.shape[3], math.prod(num_landmarks)
    if parts.masked and len(parts.grid) > 1:
        return total[..., :d], total[:, 0, :, d]
    if parts.masked:
        left = [sum(of_sample) for of_sample in zip(*parts.left, strict=True)]
        counts = [even_runs(total_left, min(m, total_left)) for total_left in left]
    else:
        cells = cells_of_grid(_asked(num_landmarks), parts.grid)
        runs = map(even_runs, parts.grid, cells)
        counts = [[math.prod(lengths) for lengths in product(*runs)]] * batch
    padded = [[*sizes, *[0] * (m - len(sizes))] for sizes in counts]
    return total, torch.tensor(padded).reshape(batch, m).to(total)


def _asked(num_landmarks: list[int]) -> int | list[int]:
    return num_landmarks if len(num_landmarks) > 1 else num_landmarks[0]


def _with_ones(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """The tokens and a column of ones, 0 for padding."""
    tokens = nn.functional.pad(tokens.to(compute_dtype(tokens)), (0, 1), value=1)
    return tokens if padding is None else tokens.masked_fill(padding[:, None, :, None], 0)


def _sums_on_grid(tokens: Tensor, parts: Parts, cells: tuple[int, ...]) -> Tensor:
    """The own part of the sums over a partition of the grid, (batch, heads, cells, d)."""
    if parts.row == 0:
        return tokens.sum(2, keepdim=True, dtype=compute_dtype(tokens))[:, :, : math.prod(cells)]
    # Zeros make whole rows of a part that begins or ends within one.
    before, after = parts.start % parts.row, -parts.stop % parts.row
    if before or after:
        tokens = nn.functional.pad(tokens, (0, 0, before, after))
    first, last = (parts.start - before) // parts.row, (parts.stop + after) // parts.row
    sums = tokens.unflatten(2, (last - first, *parts.grid[1:]))
    for dim, (size, count) in enumerate(zip(parts.grid, cells, strict=True)):
        runs = even_runs(size, count)
        own = within(runs, first, last) if dim == 0 else runs
        sums = _sums_of_runs(sums, dim + 2, own)
    return sums.flatten(2, 1 + len(cells))


def _sums_of_padded_runs(tokens: Tensor, parts: Parts, most: int) -> Tensor:
    """The own part of the sums over a sequence that is cut as if its padding were not there."""
    sums = [tokens.sum(2, keepdim=True, dtype=compute_dtype(tokens))[:0].expand(-1, -1, most, -1)]
    for sample, left in enumerate(zip(*parts.left, strict=True)):
        start, own = sum(left[: parts.rank]), left[parts.rank]
        runs = within(even_runs(sum(left), min(most, sum(left))), start, start + own)
        of_sample = _sums_of_runs(tokens[sample : sample + 1, :, :own], 2, runs)
        sums.append(nn.functional.pad(of_sample, (0, 0, 0, most - len(runs))))
    return torch.cat(sums)


def _sums_of_runs(x: Tensor, dim: int, lengths: Sequence[int]) -> Tensor:
    """Sums over consecutive runs along ``dim``, those of equal length at once."""
    sums, start = [x.narrow(dim, 0, 0).to(compute_dtype(x))], 0
    for length, same in groupby(lengths):
        count = len(list(same))
        runs = x.narrow(dim, start, count * length).unflatten(dim, (count, length))
        sums.append(runs.sum(dim + 1, dtype=compute_dtype(x)))
        start += count * length
    return torch.cat(sums, dim)


class _SumsOfCells(torch.autograd.Function):
    """The sums for compilers, as one operator a direction: their loops depend on other ranks."""

    @staticmethod
    def forward(
        tokens: Tensor,
        padding: Tensor | None,
        grid: list[int] | None,
        num_landmarks: list[int],
        num_prefix_tokens: int,
        group: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(tokens, padding, grid, num_landmarks, num_prefix_tokens, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tokens, padding, _, ctx.num_landmarks, _, ctx.group = inputs
        _, counts, table = output
        ctx.mark_non_differentiable(counts, table)
        ctx.save_for_backward(tokens, padding, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        options = (ctx.num_landmarks, ctx.group)
        return _gradient(grad, *ctx.saved_tensors, *options), None, None, None, None, None


# torch 2.6 cannot infer schemas from these annotations.
@torch.library.custom_op(
    "softattn::sums_of_cells",
    mutates_args=(),
    schema="(Tensor tokens, Tensor? padding, SymInt[]? grid, SymInt[] num_landmarks, "
    "SymInt num_prefix_tokens, str group) -> (Tensor, Tensor, Tensor)",
)
def _forward(
    tokens: Tensor,
    padding: Tensor | None,
    grid: list[int] | None,
    num_landmarks: list[int],
    num_prefix_tokens: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = exchange_parts(tokens, grid, padding, group=group, num_prefix_tokens=num_prefix_tokens)
    own = _own_sums(tokens, padding, parts, num_landmarks)
    total = plain_sum_over_ranks(own, group)
    sums, counts = _sums_and_sizes(total, tokens, parts, num_landmarks)
    return sums.contiguous(), counts.contiguous(), table_as_tensor(parts, tokens.shape[0])


@_forward.register_fake
def _(tokens, padding, grid, num_landmarks, num_prefix_tokens, group):  # type: ignore[no-untyped-def]
    batch, heads, _, d = tokens.shape
    m, dtype = math.prod(num_landmarks), compute_dtype(tokens)
    ranks, _ = size_and_rank(group)
    return (
        tokens.new_empty((batch, heads, m, d), dtype=dtype),
        tokens.new_empty((batch, m), dtype=dtype),
        torch.empty((ranks, columns_of_table(batch)), dtype=torch.long, device="cpu"),
    )


@torch.library.custom_op(
    "softattn::sums_of_cells_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor tokens, Tensor? padding, Tensor table, SymInt[] num_landmarks, "
    "str group) -> Tensor",
)
def _gradient(
    grad: Tensor,
    tokens: Tensor,
    padding: Tensor | None,
    table: Tensor,
    num_landmarks: list[int],
    group: str,
) -> Tensor:
    parts = parts_of_table(table.tolist(), size_and_rank(group)[1])
    pull_back = torch.func.vjp(lambda own: _own_sums(own, padding, parts, num_landmarks), tokens)[1]
    total = plain_sum_over_ranks(grad, group)
    if parts.masked and len(parts.grid) > 1:
        total = nn.functional.pad(total, (0, 1))  # of the column of ones
    (of_tokens,) = pull_back(total)
    return of_tokens.contiguous()


@_gradient.register_fake
def _(grad, tokens, *rest):  # type: ignore[no-untyped-def]
    return tokens.new_empty(tokens.shape)
