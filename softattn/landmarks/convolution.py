"""The published landmarks, by a strided convolution."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.common.ranks import plain_sum_over_ranks, sum_over_ranks
from softattn.common.validation import as_sizes, check_choice
from softattn.landmarks.parts import Parts, exchange_parts
from softattn.landmarks.sampler import LandmarkSampler, check_tokens_on_grid


class ConvLandmarks(LandmarkSampler):
    """The published landmarks: strided convolution, LayerNorm, GELU, on each head's own map.

    The convolution has no bias and one filter bank for all heads. Its count of landmarks grows
    with the grid, so that attention through it is linear only per landmark.

    The papers first divide queries and keys by the fourth root of d. Here the scale of the kernel
    does that. The size of the landmarks is set by LayerNorm, so they are multiplied by that root.

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
        grid = check_tokens_on_grid(tokens, grid, key_padding_mask)
        batch, _, _, d = tokens.shape
        if d != self.conv.in_channels:
            raise ValueError(
                f"tokens must have {self.conv.in_channels} features, the head_dim that these "
                f"landmarks were made for, got shape {tuple(tokens.shape)}; use "
                f"ConvLandmarks(head_dim={d}, ...)"
            )
        if tokens.numel() == 0:
            return self._no_landmarks(tokens, grid)
        if key_padding_mask is not None:
            tokens = tokens.masked_fill(key_padding_mask[:, None, :, None], 0)
        maps = rearrange(tokens, "b h n d -> (b h) d n").unflatten(-1, grid)
        cells = self.conv(self._divisible(maps)) * d**-0.25
        cells = rearrange(cells.flatten(2), "(b h) d m -> b h m d", b=batch)
        landmarks: Tensor = nn.functional.gelu(self.norm(cells)) * d**0.25
        return landmarks.to(tokens.dtype)

    def forward_over_ranks(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        group: str,
        num_prefix_tokens: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``LandmarkSampler.forward_over_ranks``; no cell may lie on two ranks."""
        parts = exchange_parts(
            tokens, grid, key_padding_mask, group=group, num_prefix_tokens=num_prefix_tokens
        )
        counts = self._counts_of_parts(parts)
        grid = (parts.rows[parts.rank], *parts.grid[1:])
        tokens = parts.without_prefix(tokens, 2)
        padding = None
        if key_padding_mask is not None:
            padding = parts.without_prefix(key_padding_mask, 1)
        elif parts.masked:
            # Of other ranks.
            padding = torch.zeros_like(tokens[:, 0, :, 0], dtype=torch.bool)
        if counts[parts.rank]:
            landmarks = self(tokens, grid, padding)
        else:
            # Empty slices keep tokens and parameters of this rank in the graph.
            cell = tokens.new_zeros(*tokens.shape[:2], math.prod(self.stride), tokens.shape[3])
            landmarks = self(cell, self.stride)[:, :, :0] + tokens[:, :, :0]
        around = (sum(counts[: parts.rank]), sum(counts[parts.rank + 1 :]))
        landmarks = sum_over_ranks(nn.functional.pad(landmarks, (0, 0, *around)), group)
        if padding is None:
            return landmarks, None
        padded = self._padded_cells(grid, padding) if counts[parts.rank] else padding[:, :0]
        padded = nn.functional.pad(padded.long(), around)
        return landmarks, plain_sum_over_ranks(padded, group).bool()

    def landmark_padding_mask(
        self, grid: Sequence[int], key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """See ``LandmarkSampler.landmark_padding_mask``."""
        return None if key_padding_mask is None else self._padded_cells(grid, key_padding_mask)

    def _padded_cells(self, grid: Sequence[int], key_padding_mask: Tensor) -> Tensor:
        if key_padding_mask.numel() == 0:
            count = self._no_landmarks(torch.empty(1, 1, math.prod(grid), 1), tuple(grid)).shape[2]
            return key_padding_mask.new_ones(len(key_padding_mask), count)
        unpadded = (~key_padding_mask).float().unsqueeze(1).unflatten(-1, tuple(grid))
        pool = (nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d)
        seen: Tensor = pool[len(grid) - 1](self._divisible(unpadded), self.stride)
        return seen.flatten(1) == 0

    def extra_repr(self) -> str:
        """The treatment of a remainder; the convolution prints its own sizes."""
        return f"remainder={self.remainder!r}"

    def _no_landmarks(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The landmarks of an empty batch or an empty grid."""
        batch, heads, _, d = tokens.shape
        maps = self._divisible(tokens.new_zeros(1, 1, *grid))
        count = math.prod(
            size // stride for size, stride in zip(maps.shape[2:], self.stride, strict=True)
        )
        return tokens.new_zeros(batch, heads, count, d)

    def _counts_of_parts(self, parts: Parts) -> list[int]:
        """How many landmarks each rank has.

        Raises:
            ValueError: a landmark is made of the tokens of several ranks.
        """
        self._divisible(torch.empty(1, 1, *parts.grid, device="meta"))
        parts.check_whole_rows(
            self.stride[0], f"landmarks are convolutions of stride {self.stride}"
        )
        if parts.masked and len(parts.grid) == 1:
            parts.check_padding_is_last("a padded sequence is convolved as if it had no padding")
        up = self.remainder == "pad"
        return [
            math.prod(
                (size + up * (stride - 1)) // stride
                for size, stride in zip((rows, *parts.grid[1:]), self.stride, strict=True)
            )
            for rows in parts.rows
        ]

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
