"""Landmark samplers: m tokens that stand for all n."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.padding import inverse_permutation, places_with_padding_last
from softattn.precision import compute_dtype
from softattn.validation import (
    as_sizes,
    check_choice,
    check_cu_seqlens,
    check_floating,
    check_mask,
)


class LandmarkSampler(nn.Module, ABC):
    """What ``SoftmaxFreeAttention`` asks of its ``landmarks``."""

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Landmarks (batch, heads, m, d) of ``tokens`` (batch, heads, n, d), in their dtype.

        Args:
            tokens: in row-major order of ``grid``.
            grid: the sizes of one, two or three grid dimensions, whose product is n; (n,) by
                default.
            key_padding_mask: (batch, n), True where a token is padding, which is not read.
        """

    @abstractmethod
    def landmark_padding_mask(
        self, grid: Sequence[int], key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """(batch, m), True where a landmark saw padding alone; None where none can have."""

    def forward_varlen(
        self, tokens: Tensor, cu_seqlens: Tensor, *, num_prefix_tokens: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Landmarks of sequences packed one after the other, of each those it would have alone.

        Args:
            tokens: (total, heads, d), all sequences.
            cu_seqlens: (batch + 1,), int32 or int64, on the CPU or with the tokens: where each
                sequence begins, and total.
            num_prefix_tokens: how many tokens at the beginning of each are left out.

        Returns:
            Landmarks (batch, heads, m, d) with the most that a sequence has as m, and (batch, m),
            True where one is padding.

        Raises:
            TypeError: tokens are not floating point, or offsets not int32 or int64.
            ValueError: offsets do not fit the tokens, or a sequence is shorter than its prefix.
        """
        check_floating("tokens", tokens)
        if tokens.ndim != 3:
            raise ValueError(f"tokens must be (total, heads, d), got shape {tuple(tokens.shape)}")
        lengths = check_cu_seqlens("cu_seqlens", cu_seqlens, len(tokens), tokens.device)
        if not 0 <= num_prefix_tokens <= min(lengths, default=num_prefix_tokens):
            raise ValueError(
                "num_prefix_tokens must lie between 0 and the length of the shortest sequence, got "
                f"{num_prefix_tokens} and the lengths {lengths}"
            )
        landmarks = [
            self(rearrange(sequence[num_prefix_tokens:], "n h d -> 1 h n d"))
            for sequence in tokens.split(lengths)
        ]
        counts = torch.tensor([each.shape[2] for each in landmarks], dtype=torch.long)
        most = max(counts.tolist(), default=0)
        padded = [nn.functional.pad(each, (0, 0, 0, most - each.shape[2])) for each in landmarks]
        nothing = tokens.new_zeros(0, tokens.shape[1], most, tokens.shape[2])
        padding = torch.arange(most) >= counts[:, None]
        return torch.cat([nothing, *padded]), padding.to(tokens.device)


class AvgPoolLandmarks(LandmarkSampler):
    """Means over a partition of the tokens: a fixed number of landmarks, whatever the grid.

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
        grid = _check_tokens_on_grid(tokens, grid, key_padding_mask)
        bins = self.bins(grid)
        dtype = compute_dtype(tokens)
        if key_padding_mask is None:
            pooled = _mean_of_cells(tokens, grid, bins, dtype)
        elif len(grid) == 1:
            pooled = _mean_of_runs(tokens, bins[0], key_padding_mask, dtype)
        else:
            padding = key_padding_mask[:, None, :, None]
            share = _mean_of_cells((~padding).to(dtype), grid, bins, dtype)
            total = _mean_of_cells(tokens.masked_fill(padding, 0), grid, bins, dtype)
            pooled = total / share.masked_fill(share == 0, 1)
        return pooled.to(tokens.dtype)

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
        if isinstance(self.num_landmarks, int):
            # Dynamo traces through a cache, and warns of it.
            split = _split_by_aspect if torch.compiler.is_compiling() else _cached_split
            return split(self.num_landmarks, tuple(grid))
        if len(self.num_landmarks) != len(grid):
            raise ValueError(
                f"num_landmarks={self.num_landmarks} has {len(self.num_landmarks)} dimensions and "
                f"the grid {tuple(grid)} has {len(grid)}; give one number for each, or an int"
            )
        return tuple(map(_at_most, self.num_landmarks, grid))

    def extra_repr(self) -> str:
        """The number of landmarks."""
        return f"num_landmarks={self.num_landmarks}"


class ConvLandmarks(LandmarkSampler):
    """The published landmarks: strided convolution, LayerNorm, GELU, on each head's own map.

    The convolution has no bias and one filter bank for all heads. Its count of landmarks grows
    with the grid, so that attention through it is linear only per landmark.

    The papers divide queries and keys by d^¼ before anything else. Here the scale of the kernel
    does that, and so landmarks, whose size LayerNorm sets, are multiplied by d^¼.

    Args:
        head_dim: d, features of a head.
        stride: the size of the convolution's cells: an int for maps of two dimensions, or one int
            for each of one, two or three dimensions.
        remainder: what happens where the stride does not divide the grid: ``"pad"`` with zeros at
            the end, ``"error"``, or ``"crop"``, which leaves the last tokens without a landmark as
            the authors' code does. For the last two the grid counts with its padding.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        head_dim: int,
        stride: int | Sequence[int],
        *,
        remainder: str = "pad",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stride = as_sizes("stride", stride, dimensions=2)
        if not 1 <= len(self.stride) <= 3 or min(self.stride) < 1:
            raise ValueError(f"stride must be one to three positive ints, got {stride!r}")
        check_choice("remainder", remainder, ("pad", "error", "crop"))
        self.remainder = remainder
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(self.stride) - 1]
        self.conv: nn.Conv1d | nn.Conv2d | nn.Conv3d = convolution(
            head_dim,
            head_dim,
            kernel_size=self.stride,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.norm = nn.LayerNorm(head_dim, device=device, dtype=dtype)

    def forward(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """See ``LandmarkSampler.forward``."""
        grid = _check_tokens_on_grid(tokens, grid, key_padding_mask)
        batch, _, _, d = tokens.shape
        if tokens.numel() == 0:
            return self._no_landmarks(tokens, grid)
        if key_padding_mask is not None:
            tokens = tokens.masked_fill(key_padding_mask[:, None, :, None], 0)
        maps = rearrange(tokens, "b h n d -> (b h) d n").unflatten(-1, grid)
        cells = self.conv(self._divisible(maps)) * d**-0.25
        cells = rearrange(cells.flatten(2), "(b h) d m -> b h m d", b=batch)
        landmarks: Tensor = nn.functional.gelu(self.norm(cells)) * d**0.25
        return landmarks.to(tokens.dtype)

    def landmark_padding_mask(
        self, grid: Sequence[int], key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """See ``LandmarkSampler.landmark_padding_mask``."""
        if key_padding_mask is None:
            return None
        if key_padding_mask.numel() == 0:
            count = self._no_landmarks(torch.empty(1, 1, math.prod(grid), 1), tuple(grid)).shape[2]
            return key_padding_mask.new_ones(len(key_padding_mask), count)
        unpadded = (~key_padding_mask).float().unsqueeze(1).unflatten(-1, tuple(grid))
        pool = (nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d)
        seen: Tensor = pool[len(grid) - 1](self._divisible(unpadded), self.stride)
        return seen.flatten(1) == 0

    def extra_repr(self) -> str:
        """The treatment of a remainder; the convolution tells the rest."""
        return f"remainder={self.remainder!r}"

    def _no_landmarks(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The landmarks of an empty batch or an empty grid."""
        batch, heads, _, d = tokens.shape
        maps = self._divisible(tokens.new_zeros(1, 1, *grid))
        count = math.prod(
            size // stride for size, stride in zip(maps.shape[2:], self.stride, strict=True)
        )
        return tokens.new_zeros(batch, heads, count, d)

    def _divisible(self, maps: Tensor) -> Tensor:
        """Maps (batch, channels, *grid) whose grid the stride divides or may crop."""
        grid = tuple(maps.shape[2:])
        if len(grid) != len(self.stride):
            raise ValueError(
                f"stride={self.stride} is for grids of {len(self.stride)} dimensions, got the grid "
                f"{grid}; give one stride for each dimension"
            )
        excess = [-size % stride for size, stride in zip(grid, self.stride, strict=True)]
        if any(excess) and self.remainder == "error":
            raise ValueError(
                f"stride={self.stride} does not divide the grid {grid}; pad the tokens, or use "
                "remainder='pad'"
            )
        if self.remainder != "pad":
            return maps
        return nn.functional.pad(maps, [side for e in reversed(excess) for side in (0, e)])


def check_grid(grid: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """The grid of n tokens, (n,) where none is given.

    Raises:
        ValueError: not one to three dimensions, or a product that is not n.
    """
    sizes = (n,) if grid is None else as_sizes("grid", grid, dimensions=1)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 0:
        raise ValueError(f"grid must have one, two or three dimensions, got {sizes}")
    if math.prod(sizes) != n:
        raise ValueError(
            f"grid {sizes} holds {math.prod(sizes)} tokens, got {n} tokens (prefix tokens are not "
            "in the grid: num_prefix_tokens says how many there are)"
        )
    return sizes


def _check_tokens_on_grid(
    tokens: Tensor, grid: Sequence[int] | None, key_padding_mask: Tensor | None
) -> tuple[int, ...]:
    check_floating("tokens", tokens)
    if tokens.ndim != 4:
        raise ValueError(
            f"tokens must be (batch, heads, tokens, d), got shape {tuple(tokens.shape)}"
        )
    batch, _, n, _ = tokens.shape
    check_mask("key_padding_mask", key_padding_mask, (batch, n), tokens.device)
    return check_grid(grid, n)


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
        return _mean_of_indexed_runs(x, dim, count, dtype)
    length, longer = divmod(x.shape[dim], count)
    head = x.narrow(dim, 0, longer * (length + 1)).unflatten(dim, (longer, length + 1))
    tail = x.narrow(dim, longer * (length + 1), (count - longer) * length)
    tail = tail.unflatten(dim, (count - longer, length))
    return torch.cat([part.mean(dim + 1, dtype=dtype) for part in (head, tail)], dim)


def _mean_of_indexed_runs(x: Tensor, dim: int, count: int, dtype: torch.dtype) -> Tensor:
    """The same in shapes that are alike for all n, which a compiler needs to be done once."""
    n = x.shape[dim]
    length, longer = n // count, n % count
    run = torch.arange(count, device=x.device)
    member = torch.arange(length + 1, device=x.device)
    start = run * length + run.clamp(max=longer)
    place = (start[:, None] + member).clamp(max=n - 1)
    size = (length + (run < longer)).view(-1, *[1] * (x.ndim - dim - 1))
    is_member = member.view(-1, *[1] * (x.ndim - dim - 1)) < size.unsqueeze(1)
    members = x.index_select(dim, place.flatten()).unflatten(dim, (count, length + 1))
    return members.where(is_member, 0).sum(dim + 1, dtype=dtype) / size


def _mean_of_runs(tokens: Tensor, count: int, padding: Tensor, dtype: torch.dtype) -> Tensor:
    """The same for sequences, each cut as if its padding were not there; short ones end in 0.

    Tokens are gathered, not scattered, which gives the same bits at every run on any device.
    """
    n = tokens.shape[2]
    if n == 0 or count == 0:
        return tokens.new_zeros(*tokens.shape[:2], count, tokens.shape[3], dtype=dtype)
    tokens_left = (~padding).sum(-1, keepdim=True)
    runs = tokens_left.clamp(max=count)
    length = tokens_left // runs.clamp(min=1)
    longer = tokens_left - length * runs
    run = torch.arange(count, device=padding.device)
    start = run * length + torch.minimum(run, longer)
    size = length + (run < longer)
    size = size.masked_fill(run >= runs, 0)
    # The members of every run among the tokens that are left, (batch, count · longest run).
    longest = n // count + 1
    member = torch.arange(longest, device=padding.device)
    is_member = (member < size[..., None])[:, None, :, :, None]
    place = (start[..., None] + member).clamp(max=n - 1)
    place = place.reshape(padding.shape[0], count * longest)
    left_first = inverse_permutation(places_with_padding_last(padding))
    place = left_first.gather(1, place)[:, None, :, None]
    place = place.expand(-1, tokens.shape[1], -1, tokens.shape[3])
    members = tokens.gather(2, place).unflatten(2, (count, longest)).where(is_member, 0)
    return members.sum(3, dtype=dtype) / size.clamp(min=1)[:, None, :, None]
