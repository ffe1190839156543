"""The ten sizes with softmax attention, to compare with: ``timm.create_model("softmax_tiny")``."""

from collections.abc import Callable
from typing import Any

from einops import rearrange
from timm.layers import GELUTanh, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from examples.imagenet.blocks import SoftmaxFreeBlock
from examples.imagenet.model import SoftmaxFreeTransformer, init_weights
from examples.imagenet.registry import IMAGES, SIZES, build
from softattn import SoftmaxFreeAttention

# Queries and keys of their own are one more matrix than SOFT's; a narrower MLP pays for it, so that
# a block has as many weights in matrices: 4 + 2 · 3.5 = 3 + 2 · 4.
MLP_RATIO = 3.5

TWINS = [f"softmax_{size}" for size in SIZES]

# timm reads this by its name.
default_cfgs = generate_default_cfgs({name: IMAGES for name in TWINS})


class SoftmaxAttention(nn.Module):
    """Softmax attention on channels-last maps, with SOFT's convolution over the values.

    Args:
        dim: features of a token.
        num_heads: heads.
        value_conv: size of the depthwise convolution over the values, as in SOFT.
    """

    def __init__(self, dim: int, num_heads: int, value_conv: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.value_conv = nn.Conv2d(
            num_heads, num_heads, value_conv, padding=value_conv // 2, groups=num_heads, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
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


class SoftmaxTwin(SoftmaxFreeTransformer):
    """SOFT with softmax attention in every block, and as many weights in matrices.

    Args:
        options: of ``SoftmaxFreeTransformer``, but for those of softmax-free attention.

    Raises:
        TypeError: an option of softmax-free attention.
    """

    def __init__(self, **options: Any) -> None:
        foreign = sorted(options.keys() & {"normalization", "pinv", "landmarks"})
        if foreign:
            raise TypeError(f"softmax attention has no {', '.join(foreign)}; leave it out")
        super().__init__(**options)
        for block in self.modules():
            if isinstance(block, SoftmaxFreeBlock):
                attention = block.attn
                assert isinstance(attention, SoftmaxFreeAttention)
                dim, convolution = attention.embed_dim, attention.value_conv
                assert convolution is not None
                block.attn = SoftmaxAttention(
                    dim, attention.num_heads, convolution.kernel_size[0]
                ).apply(init_weights)
                block.mlp = Mlp(dim, int(MLP_RATIO * dim), act_layer=GELUTanh).apply(init_weights)


def _entrypoint(name: str) -> Callable[..., SoftmaxFreeTransformer]:
    def create(pretrained: bool = False, **options: Any) -> SoftmaxFreeTransformer:
        return build(SoftmaxTwin, name, pretrained, **options)

    create.__name__ = name
    return create


for _name in TWINS:
    register_model(_entrypoint(_name))
