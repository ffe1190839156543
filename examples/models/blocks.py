"""Parts of the stages: convolutions between them, their blocks and their landmark samplers."""

from typing import Any

from timm.layers import ConvNormAct, DropPath, GELUTanh, Mlp, register_notrace_module
from torch import Tensor, nn

from softattn import (
    AvgPoolLandmarks,
    ConvLandmarks,
    KMeansLandmarks,
    LandmarkSampler,
    SoftmaxFreeAttention,
)

# A leaf for torch.fx, which cannot follow choices that depend on shapes.
register_notrace_module(SoftmaxFreeAttention)


def stem(in_chans: int, dim: int, **factory: Any) -> nn.Sequential:
    """Images (batch, in_chans, height, width) to maps (batch, dim, ⌈height/4⌉, ⌈width/4⌉).

    Args:
        in_chans: channels of an image.
        dim: channels of the maps.
        factory: device and dtype of the parameters.
    """
    return nn.Sequential(
        ConvNormAct(in_chans, 32, kernel_size=3, stride=2, bias=True, **factory),
        ConvNormAct(32, 32, kernel_size=3, bias=True, **factory),
        ConvNormAct(32, dim, kernel_size=3, stride=2, bias=True, **factory),
    )


def downsample(in_dim: int, dim: int, **factory: Any) -> nn.Sequential:
    """Maps (batch, in_dim, height, width) to (batch, dim, ⌈height/2⌉, ⌈width/2⌉).

    Args:
        in_dim: channels of the maps that come in.
        dim: channels of the maps that go out.
        factory: device and dtype of the parameters.
    """
    return nn.Sequential(ConvNormAct(in_dim, dim, kernel_size=3, stride=2, bias=True, **factory))


def sampler(name: str, head_dim: int, stride: int, **factory: Any) -> LandmarkSampler:
    """The landmark sampler with a given name.

    Args:
        name: ``"conv"``, the published strided convolution. It leaves out the last rows and columns
            of a map that its stride does not divide, and needs maps of at least its stride.
            ``"conv_pad"``, the same convolution, over a map padded with zeros. ``"avg"``, 49 means,
            with which the cost is linear at any resolution. ``"kmeans"``, these after two steps of
            k-means.
        head_dim: features of a head.
        stride: of the convolution.
        factory: device and dtype of the parameters.

    Raises:
        ValueError: an unknown name.
    """
    if name == "conv":
        return ConvLandmarks(head_dim, stride, remainder="crop", **factory)
    if name == "conv_pad":
        return ConvLandmarks(head_dim, stride, remainder="pad", **factory)
    if name == "avg":
        return AvgPoolLandmarks(49)
    if name == "kmeans":
        return KMeansLandmarks(49)
    raise ValueError(f'landmarks must be "conv", "conv_pad", "avg" or "kmeans", got {name!r}')


class PostNormBlock(nn.Module):
    """Attention and an MLP, each with a residual connection and followed by its norm.

    The GELU of the MLP is the tanh form, as in the authors' code.

    Args:
        dim: features of a token.
        attention: (batch, height, width, dim) to the same shape.
        mlp_ratio: hidden features of the MLP, as a multiple of ``dim``.
        proj_drop: dropout after the attention and in the MLP.
        drop_path: probability that a sample skips a residual branch in training.
        factory: device and dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        mlp_ratio: float,
        *,
        proj_drop: float,
        drop_path: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.attn = attention
        self.proj_drop = nn.Dropout(proj_drop)
        self.drop_path1 = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), act_layer=GELUTanh, drop=proj_drop, **factory)
        self.drop_path2 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        x = self.norm1(x + self.drop_path1(self.proj_drop(self.attn(x))))
        x = self.norm2(x + self.drop_path2(self.mlp(x)))
        return x
