"""Landmarks that follow the content, by k-means."""

from collections.abc import Sequence
from typing import SupportsIndex

from torch import Tensor

from softattn.backends.clusters import lloyd_step
from softattn.common.padding import blank_padding
from softattn.common.precision import without_autocast
from softattn.common.ranks import own_prefix
from softattn.common.validation import IMPLEMENTATIONS, check_choice
from softattn.landmarks.average import AvgPoolLandmarks
from softattn.landmarks.sampler import LandmarkSampler, check_tokens_on_grid


class KMeansLandmarks(LandmarkSampler):
    """Means of tokens that are alike, by a few steps of k-means for each sample and head.

    The means of ``AvgPoolLandmarks`` are the start. In each step (Lloyd's algorithm) every token
    belongs to its nearest landmark, and every landmark moves to the mean of its tokens. One
    without tokens stays where it is. A step costs about as much as summing the values over the
    tokens in the operator.

    Gradients flow through the means; which token belongs to which landmark is a constant for them.

    Args:
        num_landmarks: m, or one number for each grid dimension, see ``AvgPoolLandmarks``.
        steps: how many; with 0 the landmarks are those of ``AvgPoolLandmarks``.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.

    Examples:
        >>> landmarks = KMeansLandmarks(49)
        >>> landmarks(torch.randn(1, 2, 56 * 40, 32), grid=(56, 40)).shape
        torch.Size([1, 2, 48, 32])
    """

    def __init__(
        self, num_landmarks: int | Sequence[int] = 49, steps: int = 2, *, impl: str = "auto"
    ) -> None:
        super().__init__()
        if not isinstance(steps, SupportsIndex) or steps < 0:
            raise ValueError(f"steps must be an int of at least 0, got {steps!r}")
        check_choice("impl", impl, IMPLEMENTATIONS)
        self.cells = AvgPoolLandmarks(num_landmarks)
        self.steps = int(steps)
        self.impl = impl

    def forward(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """See ``LandmarkSampler.forward``."""
        grid = check_tokens_on_grid(tokens, grid, key_padding_mask)
        landmarks: Tensor = self.cells(tokens, grid, key_padding_mask)
        padding = self.landmark_padding_mask(grid, key_padding_mask)
        if landmarks.shape[2] == 0:
            return landmarks
        return self._moved(tokens, landmarks, key_padding_mask, padding)

    def forward_over_ranks(
        self,
        tokens: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        group: str,
        num_prefix_tokens: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """See ``LandmarkSampler.forward_over_ranks``; m is the number asked for."""
        landmarks, padding = self.cells.forward_over_ranks(
            tokens, grid, key_padding_mask, group=group, num_prefix_tokens=num_prefix_tokens
        )
        prefix = own_prefix(num_prefix_tokens, tokens.shape[2], group)
        tokens = tokens[:, :, prefix:]
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask[:, prefix:]
        landmarks = self._moved(tokens, landmarks, key_padding_mask, padding, group)
        return landmarks, padding

    def landmark_padding_mask(
        self, grid: Sequence[int], key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """See ``LandmarkSampler.landmark_padding_mask``."""
        return self.cells.landmark_padding_mask(grid, key_padding_mask)

    def extra_repr(self) -> str:
        """The number of steps; the cells print their own number."""
        return f"steps={self.steps}, impl={self.impl!r}"

    def _moved(
        self,
        tokens: Tensor,
        landmarks: Tensor,
        key_padding_mask: Tensor | None,
        padding: Tensor | None,
        group: str | None = None,
    ) -> Tensor:
        """The landmarks after the steps."""
        tokens = blank_padding(tokens, key_padding_mask)
        with without_autocast(tokens.device):
            for _ in range(self.steps):
                landmarks = lloyd_step(
                    tokens,
                    landmarks,
                    key_padding_mask=key_padding_mask,
                    landmark_padding_mask=padding,
                    impl=self.impl,
                    group=group,
                )
        return landmarks.to(tokens.dtype)
