"""The same pyramid with softmax attention in every block, to compare with."""

from typing import Any

import torch
from einops import rearrange
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.transformer import VALUE_CONVS, PyramidTransformer

# Separate projections of queries and keys are one more matrix than SOFT has. A narrower MLP makes
# up for it, so that the matrices of a block have as many weights: 4 + 2 · 3.5 = 3 + 2 · 4.
MLP_RATIO = 3.5


@register_notrace_module  # einops reads shapes, which torch.fx does not know
class SoftmaxAttention(nn.Module):
    """Softmax attention on channels-last maps, with SOFT's convolution over the values.

    Args:
        dim: features of a token.
        num_heads: number of heads.
        value_conv: size of the depthwise convolution over the values, as in SOFT.
        factory: device and dtype of the parameters.
    """

    def __init__(self, dim: int, num_heads: int, value_conv: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(dim, 3 * dim, **factory)
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.value_conv = nn.Conv2d(
            num_heads,
            num_heads,
            value_conv,
            padding=value_conv // 2,
            groups=num_heads,
            bias=False,
            **factory,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        _, height, width, _ = x.shape
        query, key, value = rearrange(
            self.qkv_proj(x), "b h w (t heads d) -> t b heads (h w) d", t=3, heads=self.num_heads
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        maps = rearrange(value, "b heads (h w) d -> (b d) heads h w", h=height, w=width)
        local = rearrange(self.value_conv(maps), "(b d) heads h w -> b heads (h w) d", b=len(x))
        tokens = rearrange(attended + local, "b heads (h w) d -> b h w (heads d)", h=height)
        output: Tensor = self.out_proj(tokens)
        return output


class SoftmaxTwin(PyramidTransformer):
    """SOFT with softmax attention in every block, and as many weights in matrices.

    Args:
        device: of the parameters.
        dtype: of the parameters.
        options: of ``PyramidTransformer``.
    """

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def make_attention(stage: int, dim: int, num_heads: int) -> nn.Module:
            return SoftmaxAttention(dim, num_heads, VALUE_CONVS[stage], **factory)

        super().__init__(make_attention, MLP_RATIO, **factory, **options)
