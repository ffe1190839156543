"""The stages of a SOFT backbone, at strides 4, 8, 16 and 32 of the image."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed_nhwc, trunc_normal_
from timm.models import checkpoint_seq
from torch import Tensor, nn

Grid = tuple[int, int]


class Stage(nn.Module):
    """Patch embedding, position embedding and blocks on channels-last maps.

    Args:
        dim: features of a token.
        grid: height and width of the map that the position embedding is made for. It is resized
            bilinearly for maps of another size.
        patch_embed: (batch, channels, height, width) to a smaller map of ``dim`` channels.
        blocks: (batch, height, width, dim) to the same shape.
        factory: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        patch_embed: nn.Module,
        blocks: Iterable[nn.Module],
        **factory: Any,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        positions = torch.empty(1, *grid, dim, **factory)
        self.pos_embed = nn.Parameter(trunc_normal_(positions, std=0.02))
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, dim, smaller height, smaller width)."""
        return self.run_blocks(self.embed(x)).permute(0, 3, 1, 2)

    def embed(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, smaller height, smaller width, dim)."""
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        # torch.fx can trace each size of the shape, but not a conversion of the shape to a list.
        return x + self.positions([x.shape[1], x.shape[2]])

    def positions(self, grid: list[int]) -> Tensor:
        """Position embedding for a map of ``grid`` = [height, width]: (1, height, width, dim)."""
        return resample_abs_pos_embed_nhwc(self.pos_embed, grid, "bilinear", antialias=False)

    def set_grid(self, grid: Grid) -> None:
        """Resizes the parameters of the position embedding."""
        resized = self.positions(list(grid)).detach().clone()
        self.pos_embed = nn.Parameter(resized, self.pos_embed.requires_grad)

    def run_blocks(self, x: Tensor) -> Tensor:
        """All blocks. With gradient checkpointing, the backward pass computes each block again."""
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class ClassTokenStage(Stage):
    """A stage whose blocks work on a sequence: a class token, then the map in row-major order.

    The class token has no position embedding.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        patch_embed: nn.Module,
        blocks: Iterable[nn.Module],
        **factory: Any,
    ) -> None:
        super().__init__(dim, grid, patch_embed, blocks, **factory)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim, **factory), std=0.02))

    # The map comes first: timm's extractors take the first of several outputs as the feature map.
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(batch, channels, height, width) to a map and a class token.

        Returns:
            (batch, dim, smaller height, smaller width) and (batch, 1, dim).
        """
        x = self.embed(x)
        class_token = self.cls_token.expand(x.shape[0], -1, -1)
        tokens = self.run_blocks(torch.cat([class_token, x.flatten(1, 2)], 1))
        return split_tokens(tokens, (x.shape[1], x.shape[2]))


def split_tokens(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(batch, 1 + height · width, dim) to a map (batch, dim, height, width) and a class token."""
    class_token = tokens[:, :1]
    # torch.fx takes the last operation of a stage as its output, so the map is made last.
    return tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2), class_token


def join_tokens(features: Tensor, class_token: Tensor) -> Tensor:
    """The inverse of ``split_tokens``."""
    return torch.cat([class_token, features.flatten(2).mT], 1)
