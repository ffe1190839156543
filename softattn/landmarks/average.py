"""Landmarks that are means over the cells of a partition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softattn.common.padding import inverse_permutation, places_with_padding_last
from softattn.common.precision import compute_dtype
from softattn.common.validation import as_sizes
from softattn.landmarks.cells import cells_of_grid
from softattn.landmarks.sampler import LandmarkSampler, check_tokens_on_grid
from softattn.landmarks.sums_of_cells import sums_of_cells


class AvgPoolLandmarks(LandmarkSampler):
    """Means over a partition of the tokens: a fixed number of landmarks for grids of any size.

    Along each grid dimension the tokens are cut into runs whose lengths differ by one at most. A
    padded sequence is cut as if its padding were not there; on a map each mean is over what is not
    padding in its cell.

    Args:
        num_landmarks: m, shared out over the dimensions of a map close to its aspect ratio (49
            over a square is 7 × 7, and over 2 : 1 it is 9 × 5), or one number for each dimension.
            There are never more landmarks than tokens along a dimension.
    """

    def __init__(self, num_landmarks: int | Sequence[int] = 49) -> None:
        super().__init__()
        sizes = as_sizes("num_landmarks", num_landmarks, dimensions=1)
        if not sizes or min(sizes) < 1:
            raise ValueError(
                "num_landmarks must be a positive int or one for each grid dimension, got "
                f"{num_landmarks!r}"
            )
        self.num_landmarks = sizes if isinstance(num_landmarks, Sequence) else sizes[0]

    def forward(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """See ``LandmarkSampler.forward``."""
        grid = check_tokens_on_grid(tokens, grid, key_padding_mask)
        bins = self.bins(grid)
        dtype = compute_dtype(tokens)
        if key_padding_mask is None:
            pooled = _mean_of_cells(tokens, grid, bins, dtype)
        elif len(grid) == 1:
            if tokens.numel() == 0:
                return tokens.new_zeros(*tokens.shape[:2], bins[0], tokens.shape[3])
            pooled = _mean_of_gathered_runs(tokens, 2, bins[0], dtype, key_padding_mask)
        else:
            padding = key_padding_mask[:, None, :, None]
            share = _mean_of_cells((~padding).to(dtype), grid, bins, dtype)
            total = _mean_of_cells(tokens.masked_fill(padding, 0), grid, bins, dtype)
            pooled = total / share.masked_fill(share == 0, 1)
        return pooled.to(tokens.dtype)

    def forward_over_ranks(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        group: str,
        num_prefix_tokens: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """See ``LandmarkSampler.forward_over_ranks``; m is the number asked for.

        The ranks may be cut anywhere, also within a row of a map.
        """
        asked = self.num_landmarks
        sums, sizes = sums_of_cells(
            tokens,
            grid,
            key_padding_mask,
            num_landmarks=[asked] if isinstance(asked, int) else list(asked),
            num_prefix_tokens=num_prefix_tokens,
            group=group,
        )
        means = sums / sizes.clamp(min=1)[:, None, :, None]
        return means.to(tokens.dtype), sizes == 0

    def landmark_padding_mask(
        self, grid: Sequence[int], key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """See ``LandmarkSampler.landmark_padding_mask``."""
        if key_padding_mask is None:
            return None
        bins = self.bins(grid)
        if len(grid) == 1:
            tokens_left = (~key_padding_mask).sum(-1, keepdim=True)
            return torch.arange(bins[0], device=key_padding_mask.device) >= tokens_left
        unpadded = (~key_padding_mask).float()[:, None, :, None]
        return (_mean_of_cells(unpadded, grid, bins, torch.float32) == 0)[:, 0, :, 0]

    def bins(self, grid: Sequence[int]) -> tuple[int, ...]:
        """The number of landmarks along each dimension of ``grid``."""
        return cells_of_grid(self.num_landmarks, grid)

    def extra_repr(self) -> str:
        """The number of landmarks."""
        return f"num_landmarks={self.num_landmarks}"


def _mean_of_cells(
    tokens: Tensor, grid: Sequence[int], bins: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """(batch, heads, n, d) → (batch, heads, m, d): means over the cells of a partition."""
    maps = tokens.unflatten(2, tuple(grid))
    for dim, count in enumerate(bins, start=2):
        maps = _mean_of_even_runs(maps, dim, count, dtype)
    return maps.flatten(2, 1 + len(grid))


def _mean_of_even_runs(x: Tensor, dim: int, count: int, dtype: torch.dtype) -> Tensor:
    """Means over ``count`` runs along ``dim``: the first n mod count are one longer."""
    if count == 0:
        return x.to(dtype)
    if torch.compiler.is_compiling():
        # The shapes below depend on n mod count: each would be compiled anew.
        return _mean_of_gathered_runs(x, dim, count, dtype)
    length, longer = divmod(x.shape[dim], count)
    if longer == 0:
        return _means_of_runs(x, dim, length, dtype)
    parts = x.split_with_sizes([longer * (length + 1), (count - longer) * length], dim)
    runs = zip(parts, (length + 1, length), strict=True)
    return torch.cat([_means_of_runs(part, dim, run, dtype) for part, run in runs], dim)


def _means_of_runs(x: Tensor, dim: int, run: int, dtype: torch.dtype) -> Tensor:
    # The gradient of a mean divides after it has expanded.
    return x.unflatten(dim, (x.shape[dim] // run, run)).sum(dim + 1, dtype=dtype) / run


def _mean_of_gathered_runs(
    x: Tensor, dim: int, count: int, dtype: torch.dtype, padding: Tensor | None = None
) -> Tensor:
    """The same without the tokens that are ``padding`` (batch, n); short samples end in zeros.

    Tokens are gathered, not scattered, which gives the same bits at every run on any device.
    """
    n = x.shape[dim]
    if padding is None:
        order, left = None, torch.full((1, 1), n, device=x.device)
    else:
        order = inverse_permutation(places_with_padding_last(padding))
        left = (~padding).sum(-1, keepdim=True)
    # (batch, count): where each run starts among the tokens that are left, and its length.
    runs = left.clamp(max=count)
    length = left // runs.clamp(min=1)
    longer = left - length * runs
    run = torch.arange(count, device=x.device)
    start = run * length + torch.minimum(run, longer)
    size = (length + (run < longer)).masked_fill(run >= runs, 0)
    # (batch, count, longest run): the members of each run.
    member = torch.arange(n // count + 1, device=x.device)
    is_member = member < size[..., None]
    place = (start[..., None] + member).clamp(max=n - 1).flatten(1)
    if order is not None:
        place = order.gather(1, place)
    tokens = x.movedim(dim, 1)
    # ``take_along_dim`` and ``len`` would fix the sizes that a compiler leaves open.
    flat = tokens.flatten(2)
    members = flat.gather(1, place[..., None].expand(flat.shape[0], -1, flat.shape[2]))
    members = members.unflatten(1, (count, member.shape[0])).where(is_member[..., None], 0)
    means = members.sum(2, dtype=dtype) / size.clamp(min=1)[..., None]
    return means.unflatten(2, tokens.shape[2:]).movedim(1, dim)
