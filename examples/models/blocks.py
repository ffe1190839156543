"""What the stages of a SOFT classifier are made of."""

from collections.abc import Callable

from timm.layers import ConvNormAct, DropPath, GELUTanh, Mlp
from torch import Tensor, nn

from softattn import AvgPoolLandmarks, ConvLandmarks, LandmarkSampler, SoftmaxFreeAttention

MLP_RATIO = 4


def stem(in_chans: int, dim: int) -> nn.Sequential:
    """Images (batch, in_chans, height, width) to maps (batch, dim, ⌈height/4⌉, ⌈width/4⌉)."""
    return nn.Sequential(
        ConvNormAct(in_chans, 32, kernel_size=3, stride=2, bias=True),
        ConvNormAct(32, 32, kernel_size=3, bias=True),
        ConvNormAct(32, dim, kernel_size=3, stride=2, bias=True),
    )


def downsample(in_dim: int, dim: int) -> nn.Sequential:
    """Maps (batch, in_dim, height, width) to (batch, dim, ⌈height/2⌉, ⌈width/2⌉)."""
    return nn.Sequential(ConvNormAct(in_dim, dim, kernel_size=3, stride=2, bias=True))


def sampler(name: str, head_dim: int, stride: int) -> LandmarkSampler:
    """The landmark sampler of a name.

    Args:
        name: ``"conv"``, the published strided convolution, which leaves the last rows and columns
            without a landmark where the stride does not divide the map and needs maps of a stride
            at least; ``"conv_pad"``, the same over a map padded with zeros; or ``"avg"``, 49 means,
            which keep attention linear at any resolution.
        head_dim: features of a head.
        stride: of the convolution.

    Raises:
        ValueError: an unknown name.
    """
    if name == "conv":
        return ConvLandmarks(head_dim, stride, remainder="crop")
    if name == "conv_pad":
        return ConvLandmarks(head_dim, stride, remainder="pad")
    if name == "avg":
        return AvgPoolLandmarks(49)
    raise ValueError(f'landmarks must be "conv", "conv_pad" or "avg", got {name!r}')


class SoftmaxFreeBlock(nn.Module):
    """Softmax-free attention and an MLP, each followed by its norm.

    The MLP's GELU is the tanh form, as in the authors' code.

    Args:
        dim: features of a token.
        num_heads: heads of the attention.
        landmarks: of ``softattn.SoftmaxFreeAttention``, as are the next three.
        value_conv: see there.
        normalization: see there.
        pinv: see there.
        drop_path: chance that a sample goes without a residual branch in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        landmarks: LandmarkSampler,
        value_conv: int,
        normalization: str,
        pinv: str | Callable[[Tensor], Tensor] | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.attn: nn.Module = SoftmaxFreeAttention(
            dim,
            num_heads,
            landmarks=landmarks,
            normalization=normalization,
            pinv=pinv,
            value_conv=value_conv,
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim, act_layer=GELUTanh)
        self.drop_path2 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same."""
        x = self.norm1(x + self.drop_path1(self.attn(x)))
        x = self.norm2(x + self.drop_path2(self.mlp(x)))
        return x
