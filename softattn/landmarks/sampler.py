"""The interface of landmark samplers: m tokens that stand for all n."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.common.padding import inverse_permutation, places_with_padding_last
from softattn.common.ranks import own_prefix
from softattn.common.validation import as_sizes, check_cu_seqlens, check_floating, check_mask


class LandmarkSampler(nn.Module, ABC):
    """The interface of the ``landmarks`` of ``SoftmaxFreeAttention``."""

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
            key_padding_mask: (batch, n), True where a token is padding, which is ignored.
        """

    @abstractmethod
    def landmark_padding_mask(
        self, grid: Sequence[int], key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """(batch, m), True where a landmark's cell is all padding; None without a mask."""

    def forward_over_ranks(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        group: str,
        num_prefix_tokens: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """The landmarks of a sequence that the ranks of a process group share, on every rank.

        Args:
            tokens: (batch, heads, n, d), this rank's part of the sequence.
            grid: the sizes of this part, cut along its first dimension, or on every rank those of
                the whole sequence; one dimension by default.
            key_padding_mask: (batch, n), True where a token of this part is padding. In one
                dimension padding is last in each part.
            group: the name of the group.
            num_prefix_tokens: how many tokens at the beginning of the first rank's part are left
                out.

        Returns:
            Landmarks (batch, heads, m, d), and (batch, m), True where one is padding, or None.

        Raises:
            ValueError: the parts of the ranks do not fit each other; on every rank.
        """
        raise TypeError(
            f"{type(self).__name__} does not pool landmarks over several ranks; use one that has "
            "forward_over_ranks, such as softattn.AvgPoolLandmarks"
        )

    def forward_varlen(
        self, tokens: Tensor, cu_seqlens: Tensor, *, num_prefix_tokens: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Landmarks of packed sequences; each gets those that it would get alone.

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


def pool_landmarks(
    sampler: LandmarkSampler,
    keys: Tensor,
    key_padding_mask: Tensor | None = None,
    *,
    grid: Sequence[int] | None = None,
    num_prefix_tokens: int = 0,
    group: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The landmarks of the keys after the prefix, and which of them come from padding alone.

    In one dimension padding is moved behind the other tokens first.

    Args:
        sampler: what makes landmarks of tokens.
        keys: (batch, heads, n, d).
        key_padding_mask: (batch, n), True where a token is padding.
        grid: sizes whose product is n − num_prefix_tokens; one dimension by default.
        num_prefix_tokens: how many tokens before the grid are left out of the landmarks.
        group: the name of a process group whose ranks share the keys, see
            ``LandmarkSampler.forward_over_ranks``.

    Returns:
        (batch, heads, m, d), and (batch, m) or None.

    Raises:
        ValueError: the grid does not hold the keys after the prefix.
    """
    if group is not None:
        if key_padding_mask is not None and (grid is None or len(grid) == 1):
            prefix = own_prefix(num_prefix_tokens, keys.shape[2], group)
            in_grid = torch.arange(keys.shape[2], device=keys.device) >= prefix
            order = inverse_permutation(places_with_padding_last(key_padding_mask & in_grid))
            key_padding_mask = key_padding_mask.gather(1, order)
            keys = keys.take_along_dim(order[:, None, :, None], 2)
        return sampler.forward_over_ranks(
            keys, grid, key_padding_mask, group=group, num_prefix_tokens=num_prefix_tokens
        )
    tokens = keys[:, :, num_prefix_tokens:]
    grid = check_grid(grid, tokens.shape[2])
    padding = None
    if key_padding_mask is not None:
        padding = key_padding_mask[:, num_prefix_tokens:]
        if len(grid) == 1:
            order = inverse_permutation(places_with_padding_last(padding))
            padding = padding.gather(1, order)
            tokens = tokens.take_along_dim(order[:, None, :, None], 2)
    return sampler(tokens, grid, padding), sampler.landmark_padding_mask(grid, padding)


def check_sampler(landmarks: object) -> None:
    """Raises TypeError unless ``landmarks`` is a ``LandmarkSampler`` or None."""
    if landmarks is not None and not isinstance(landmarks, LandmarkSampler):
        raise TypeError(
            "landmarks must be a LandmarkSampler such as softattn.AvgPoolLandmarks(49), got "
            f"{landmarks!r}"
        )


def check_grid(grid: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """The grid of n tokens, (n,) where none is given.

    Raises:
        ValueError: not one to three dimensions, or a product that is not n.
    """
    sizes = check_dimensions((n,) if grid is None else grid)
    if math.prod(sizes) != n:
        raise ValueError(
            f"grid {sizes} holds {math.prod(sizes)} tokens, got {n} tokens (prefix tokens are not "
            "in the grid: num_prefix_tokens says how many there are)"
        )
    return sizes


def check_dimensions(grid: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a grid as a tuple.

    Raises:
        ValueError: not one to three dimensions.
    """
    sizes = as_sizes("grid", grid, dimensions=1)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 0:
        raise ValueError(f"grid must have one, two or three dimensions, got {sizes}")
    return sizes


def check_tokens_on_grid(
    tokens: Tensor, grid: Sequence[int] | None, key_padding_mask: Tensor | None
) -> tuple[int, ...]:
    """Checks the arguments of ``LandmarkSampler.forward`` and returns the grid."""
    check_floating("tokens", tokens)
    if tokens.ndim != 4:
        raise ValueError(
            f"tokens must be (batch, heads, tokens, d), got shape {tuple(tokens.shape)}"
        )
    batch, _, n, _ = tokens.shape
    check_mask("key_padding_mask", key_padding_mask, (batch, n), tokens.device)
    return check_grid(grid, n)
