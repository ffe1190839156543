"""The published depthwise convolution over the values, which is added to the output."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.common.ranks import size_and_rank, swap_with_neighbours
from softattn.common.validation import as_sizes
from softattn.landmarks.parts import Parts


def convolve_values(
    convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d,
    values: Tensor,
    grid: tuple[int, ...],
    group: str | None = None,
) -> Tensor:
    """The value convolution over the grid, 0 at the tokens before it: (batch, heads, n, d).

    With a ``group`` the grid is this rank's part, and rows of its neighbours are around it.
    """
    prefix, dimensions = values.shape[2] - math.prod(grid), len(convolution.kernel_size)
    if len(grid) != dimensions:
        raise ValueError(
            f"value_conv={convolution.kernel_size} is for grids of {dimensions} dimensions, got "
            f"the grid {grid}; give one size for each dimension"
        )
    if values.numel() == 0 or 0 in grid:
        return torch.zeros_like(values)
    maps = rearrange(values[:, :, prefix:], "b h n d -> (b d) h n").unflatten(-1, grid)
    halo = convolution.kernel_size[0] // 2
    if group is not None and halo and size_and_rank(group)[0] > 1:
        rows = maps.movedim(2, 0)
        before, after = swap_with_neighbours(rows[:halo], rows[-halo:], group)
        wider = convolution(torch.cat([before, rows, after]).movedim(0, 2))
        convolved = wider[:, :, halo : halo + grid[0]]
    else:
        convolved = convolution(maps)
    local = rearrange(convolved.flatten(2), "(b d) h n -> b h n d", b=values.shape[0])
    return nn.functional.pad(local, (0, 0, prefix, 0))


def make_value_conv(
    num_heads: int,
    size: int | Sequence[int],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | None:
    """The depthwise convolution of odd size, one filter a head; None for size 0.

    Raises:
        TypeError: the size is no int and no sequence of ints.
        ValueError: a size is even or negative, or there are more than three.
    """
    if not size:
        return None
    sizes = as_sizes("value_conv", size, dimensions=2)
    if not 1 <= len(sizes) <= 3 or any(s < 1 or s % 2 == 0 for s in sizes):
        raise ValueError(f"value_conv must be odd and positive, one to three sizes, got {size!r}")
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1]
    return convolution(
        num_heads,
        num_heads,
        sizes,  # type: ignore[arg-type]
        padding=tuple(s // 2 for s in sizes),  # type: ignore[arg-type]
        groups=num_heads,
        bias=False,
        device=device,
        dtype=dtype,
    )


def check_parts_for_value_conv(
    convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d, parts: Parts
) -> tuple[int, ...]:
    """The grid of this rank's part, if each part has all the rows that its neighbours need.

    Raises:
        ValueError: a part does not begin with a row, or has too few.
    """
    reason = f"value_conv={convolution.kernel_size} reads the rows before and after a part"
    parts.check_whole_rows(1, reason)
    halo = convolution.kernel_size[0] // 2
    if len(parts.rows) > 1 and min(parts.rows) < halo:
        raise ValueError(
            f"{reason}, so each rank must have at least {halo} of them, got {parts.rows}"
        )
    return (parts.rows[parts.rank], *parts.grid[1:])
