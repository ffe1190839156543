"""The parts of one grid of tokens that the ranks of a process group hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from softattn.common.ranks import (
    DTYPES,
    check_ranks_agree,
    gather_numbers,
    own_prefix,
    size_and_rank,
)

# What every rank tells the others: first what all must have in common.
_COMMON = ("batch", "heads", "features", "dtype", "number of prefix tokens", "grid dimensions")
_SIZES = len(_COMMON)
_TOKENS = _SIZES + 3
_MASKED = _TOKENS + 1
_COLUMNS = _MASKED + 1


@dataclass(frozen=True)
class Parts:
    """Contiguous parts of a grid in row-major order, one for each rank, which may be empty.

    table: for each rank what it has told; see ``exchange_parts``.
    rank: which of them this process is.
    grid: the sizes of the whole grid.
    bounds: (ranks + 1) where each part begins, without prefix tokens, and the number of tokens.
    """

    table: list[list[int]]
    rank: int
    grid: tuple[int, ...]
    bounds: tuple[int, ...]

    @property
    def start(self) -> int:
        """The first token of this rank's part."""
        return self.bounds[self.rank]

    @property
    def stop(self) -> int:
        """The token after this rank's part."""
        return self.bounds[self.rank + 1]

    @property
    def masked(self) -> bool:
        """Whether any rank has padding."""
        return any(row[_MASKED] for row in self.table)

    @property
    def left(self) -> list[list[int]]:
        """Of a masked sequence how many tokens are not padding, for each rank and sample."""
        return [row[_COLUMNS:] for row in self.table]

    @property
    def row(self) -> int:
        """The number of tokens with one place in the first grid dimension."""
        return math.prod(self.grid[1:])

    @property
    def rows(self) -> list[int]:
        """The number of whole rows of each part."""
        return [(stop - start) // max(self.row, 1) for start, stop in pairwise(self.bounds)]

    def without_prefix(self, tokens: Tensor, dim: int) -> Tensor:
        """The tokens of this rank, along a dimension, after the prefix that the first rank has."""
        n = self.stop - self.start
        return tokens.narrow(dim, tokens.shape[dim] - n, n)

    def check_padding_is_last(self, reason: str) -> None:
        """Raises ValueError unless the padding of a sequence is all after its other tokens."""
        lengths = [stop - start for start, stop in pairwise(self.bounds)]
        for left in zip(*self.left, strict=True):
            last = max((rank for rank, number in enumerate(left) if number), default=0)
            if list(left[:last]) != lengths[:last]:
                raise ValueError(
                    f"{reason}, so on several ranks it must be padded at its end; the parts of "
                    f"{lengths} tokens have {list(left)} that are not padding"
                )

    def check_whole_rows(self, multiple: int, reason: str) -> None:
        """Raises ValueError unless each part begins at a multiple of so many rows."""
        inner = [bound for bound in self.bounds[1:-1] if bound < self.bounds[-1]]
        if self.row and any(bound % (multiple * self.row) for bound in inner):
            rows = [f"{bound / self.row:g}" for bound in inner]
            raise ValueError(
                f"{reason}, so each rank's part of the grid {self.grid} must begin at a multiple "
                f"of {multiple} along its first dimension; after the first they begin at "
                f"{', '.join(rows)}"
            )


def exchange_parts(
    tokens: Tensor,
    grid: Sequence[int] | None,
    key_padding_mask: Tensor | None,
    *,
    group: str,
    num_prefix_tokens: int,
) -> Parts:
    """Tells the other ranks of a group what part of a sequence this one has; the host waits.

    Args:
        tokens: (batch, heads, n, d), this rank's part with the prefix on the first rank.
        grid: of this part or, the same on all ranks, of all parts together.
        key_padding_mask: (batch, n) or None, as on any rank.
        group: the name of the group.
        num_prefix_tokens: of the whole sequence.

    Raises:
        ValueError: the ranks do not fit each other, on every rank.
    """
    batch, heads, n, features = tokens.shape
    sizes = (n - own_prefix(num_prefix_tokens, n, group),) if grid is None else tuple(grid)
    numbers = [batch, heads, features, DTYPES.index(tokens.dtype), num_prefix_tokens, len(sizes)]
    numbers += [*sizes, 0, 0][:3]
    table = gather_numbers([*numbers, n, key_padding_mask is not None], group, tokens.device)
    check_ranks_agree(table, _COMMON)
    if any(row[_MASKED] for row in table) and len(sizes) == 1:
        # Padding does not count in the runs of a sequence.
        left = [n - own_prefix(num_prefix_tokens, n, group)] * batch
        if key_padding_mask is not None:
            left = (~key_padding_mask[:, n - left[0] :]).sum(-1).tolist() if batch else []
        of_ranks = gather_numbers(left, group, tokens.device) if batch else [[] for _ in table]
        table = [row + counts for row, counts in zip(table, of_ranks, strict=True)]
    return parts_of_table(table, size_and_rank(group)[1])


def parts_of_table(table: list[list[int]], rank: int) -> Parts:
    """Finds the whole grid and the place of each part in it.

    Raises:
        ValueError: they make no grid.
    """
    prefix, dimensions = table[0][_COMMON.index("number of prefix tokens")], table[0][_SIZES - 1]
    if table[0][_TOKENS] < prefix:
        raise ValueError(
            f"the first rank must have the {prefix} prefix tokens, got {table[0][_TOKENS]} tokens"
        )
    lengths = [row[_TOKENS] - (prefix if i == 0 else 0) for i, row in enumerate(table)]
    grids = [tuple(row[_SIZES : _SIZES + dimensions]) for row in table]
    bounds = (0, *accumulate(lengths))
    of_parts = all(math.prod(g) == n for g, n in zip(grids, lengths, strict=True))
    if of_parts and len({grid[1:] for grid in grids}) == 1:
        whole = (sum(grid[0] for grid in grids), *grids[0][1:])
    elif len(set(grids)) == 1 and math.prod(grids[0]) == bounds[-1]:
        whole = grids[0]
    else:
        raise ValueError(
            "the grid must be that of each rank's part, of equal sizes in all dimensions but the "
            "first, or on every rank that of the whole sequence; got "
            + ", ".join(
                f"{grid} for {n} tokens on rank {r}"
                for r, (grid, n) in enumerate(zip(grids, lengths, strict=True))
            )
        )
    return Parts(table, rank, whole, bounds)


def even_runs(total: int, count: int) -> list[int]:
    """The lengths of ``count`` runs of so many tokens; the first total mod count are one longer."""
    length, longer = divmod(total, max(count, 1))
    return [length + (run < longer) for run in range(count)]


def within(lengths: Sequence[int], start: int, stop: int) -> list[int]:
    """How much of each of the runs lies between two places."""
    ends = list(accumulate(lengths))
    return [
        max(0, min(end, stop) - max(end - length, start))
        for end, length in zip(ends, lengths, strict=True)
    ]


def table_as_tensor(parts: Parts, batch: int) -> Tensor:
    """The table, (ranks, columns + batch), for a gradient that must not exchange it again."""
    padded = [row + [0] * (_COLUMNS + batch - len(row)) for row in parts.table]
    return torch.tensor(padded, dtype=torch.long)


def columns_of_table(batch: int) -> int:
    """The columns of ``table_as_tensor``."""
    return _COLUMNS + batch
