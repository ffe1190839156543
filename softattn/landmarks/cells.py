"""How many cells a grid is cut into along each of its dimensions."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import torch


def cells_of_grid(asked: int | Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    """The number of cells along each dimension.

    Args:
        asked: one number for each dimension, or an int, which is shared out over them.
        grid: the sizes of the grid.

    Raises:
        ValueError: there is not one number for each dimension.
    """
    if isinstance(asked, int):
        # Dynamo traces through a cache, and warns of it.
        split = _split_by_aspect if torch.compiler.is_compiling() else _cached_split
        return split(asked, tuple(grid))
    if len(asked) != len(grid):
        raise ValueError(
            f"num_landmarks={tuple(asked)} has {len(asked)} dimensions and the grid {tuple(grid)} "
            f"has {len(grid)}; give one number for each, or an int"
        )
    return tuple(map(_at_most, asked, grid))


def _at_most(count: int, size: int) -> int:
    # ``min`` of a compiler's symbol is a symbol; a branch is settled when it is traced.
    return count if size >= count else size


def _split_by_aspect(count: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    """At most ``count`` cells, close to it in number and to the grid in aspect."""
    if 0 in grid:
        return tuple(min(1, size) for size in grid)
    if len(grid) == 1:
        return (_at_most(count, grid[0]),)
    leading = product(*(range(1, min(size, count) + 1) for size in grid[:-1]))
    splits = [
        (*sizes, min(grid[-1], count // math.prod(sizes)))
        for sizes in leading
        if math.prod(sizes) <= count
    ]
    # Early versions of Dynamo know the key of ``sorted`` alone.
    return sorted(splits, key=lambda bins: _elongation(bins, grid) - math.log(math.prod(bins)))[0]


def _elongation(bins: tuple[int, ...], grid: tuple[int, ...]) -> float:
    """The logarithm of the ratio of a cell's longest side to its shortest."""
    sides = [math.log(size / number) for size, number in zip(grid, bins, strict=True)]
    return max(sides) - min(sides)


_cached_split = lru_cache(_split_by_aspect)
