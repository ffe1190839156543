"""The stages of a SOFT classifier: each halves the map, the first quarters the image."""

from collections.abc import Iterable

import torch
from timm.layers import resample_abs_pos_embed_nhwc, trunc_normal_
from timm.models import checkpoint_seq
from torch import Tensor, nn


class Stage(nn.Module):
    """Patch embedding, position embedding and blocks on channels-last maps.

    Args:
        dim: features of a token.
        grid: side of the square map that the position embedding is for; it is resized bilinearly
            to maps of another size.
        patch_embed: (batch, channels, height, width) to a smaller map of ``dim`` channels.
        blocks: (batch, height, width, dim) to the same.
    """

    def __init__(
        self, dim: int, grid: int, patch_embed: nn.Module, blocks: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, grid, grid, dim), std=0.02))
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, dim, smaller height, smaller width)."""
        return self.run_blocks(self.embed(x)).permute(0, 3, 1, 2)

    def embed(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, smaller height, smaller width, dim)."""
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        grid = list(x.shape[1:3])
        return x + resample_abs_pos_embed_nhwc(self.pos_embed, grid, "bilinear", antialias=False)

    def run_blocks(self, x: Tensor) -> Tensor:
        """All blocks; when checkpointing, a backward pass computes each of them again."""
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class ClassTokenStage(Stage):
    """A stage whose blocks work on a sequence: a class token, then the map in row-major order.

    The class token is placed by its own value: it has no position embedding.
    """

    def __init__(
        self, dim: int, grid: int, patch_embed: nn.Module, blocks: Iterable[nn.Module]
    ) -> None:
        super().__init__(dim, grid, patch_embed, blocks)
        self.cls_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, 1 + smaller height · width, dim)."""
        tokens = self.embed(x).flatten(1, 2)
        return self.run_blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))
