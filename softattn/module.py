"""The layer."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.attention import softmax_free_attention
from softattn.implementation import IMPLEMENTATIONS
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler
from softattn.pinv import resolve_pinv
from softattn.precision import autocasts
from softattn.tokens import TokenBatch, arrange_tokens
from softattn.validation import (
    NORMALIZATIONS,
    as_sizes,
    check_causal,
    check_choice,
    check_floating,
)


class SoftmaxFreeAttention(nn.Module):
    """Multi-head softmax-free attention, linear in the number of tokens.

    Queries and keys share one projection, as in SOFT (NeurIPS 2021); cross-attention shares it too.

    Args:
        embed_dim: features of a token, in and out.
        num_heads: heads.
        head_dim: d, features of a head; embed_dim / num_heads by default.
        landmarks: a ``LandmarkSampler``; ``AvgPoolLandmarks(49)`` by default.
        normalization: ``"none"``, ``"landmark"`` or ``"token"``, see ``softmax_free_attention``.
        pinv: what inverts the landmarks' Gram matrix, see ``softmax_free_attention``.
        value_conv: size of the published depthwise convolution over the values, which is added to
            the output: an odd int for maps of two dimensions, one for each dimension of other
            grids, 0 for none. One filter a head.
        bias: whether the three projections have one.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes do not fit, or a choice is unknown or cannot run.

    Example:
        >>> attention = SoftmaxFreeAttention(embed_dim=64, num_heads=2)
        >>> attention(torch.randn(1, 56, 40, 64)).shape
        torch.Size([1, 56, 40, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        landmarks: LandmarkSampler | None = None,
        normalization: str = "landmark",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        value_conv: int | Sequence[int] = 0,
        bias: bool = True,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or (head_dim is not None and head_dim < 1):
            raise ValueError(
                "embed_dim, num_heads and head_dim must be positive, got "
                f"{embed_dim}, {num_heads} and {head_dim}"
            )
        if landmarks is not None and not isinstance(landmarks, LandmarkSampler):
            raise TypeError(
                "landmarks must be a LandmarkSampler such as softattn.AvgPoolLandmarks(49), got "
                f"{landmarks!r}"
            )
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}; or "
                "give head_dim"
            )
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("impl", impl, IMPLEMENTATIONS)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.normalization = normalization
        self.impl = impl
        inner = self.num_heads * self.head_dim
        self.qk_proj = nn.Linear(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias, device=device, dtype=dtype)
        self.landmarks = AvgPoolLandmarks() if landmarks is None else landmarks
        self.pinv = resolve_pinv(pinv, impl)
        self.value_conv = (
            _depthwise_conv(num_heads, value_conv, device, dtype) if value_conv else None
        )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        num_prefix_tokens: int = 0,
        is_causal: bool = False,
    ) -> Tensor:
        """Attends from the tokens of ``x`` to themselves, or to those of ``context``.

        ``grid``, ``key_padding_mask`` and ``num_prefix_tokens`` describe the tokens that are
        attended to.

        Args:
            x: (batch, tokens, embed_dim), or a channels-last map (batch, *grid, embed_dim) of two
                or three grid dimensions.
            context: likewise; landmarks, keys and values then come from it. The very tensor that
                is ``x`` is self-attention.
            grid: one, two or three sizes whose product is the number of tokens without prefix
                tokens, in row-major order; by default the map's, or one dimension.
            key_padding_mask: (batch, tokens), or (batch, *grid) for a map; True where a token is
                padding. Padding is never read and answers 0, as does a sample that is all padding.
                On a grid of one dimension a padded sample answers what it would unpadded.
            num_prefix_tokens: how many tokens before the grid, such as a class token, are queries
                and keys but have no part in the grid, the landmarks and the value convolution.
            is_causal: not offered; True raises and says why.

        Returns:
            The shape of ``x``, in its dtype, or autocast's.

        Raises:
            TypeError: inputs that are not floating point, of another dtype than the parameters, or
                a mask that is not bool.
            ValueError: shapes that do not fit each other, the grid or the layer.
        """
        check_causal(is_causal)
        if context is x:
            context = None
        self._check("x", x)
        if context is not None:
            self._check("context", context)
            if self.value_conv is not None:
                raise ValueError(
                    "value_conv adds the values around each token to its own output, and in "
                    "cross-attention the values are not at the queries' places; use value_conv=0"
                )
        source = arrange_tokens(
            x if context is None else context, grid, key_padding_mask, num_prefix_tokens
        )
        keys = self._heads(self.qk_proj, source.features)
        values = self._heads(self.v_proj, source.features)
        queries = keys if context is None else self._heads(self.qk_proj, x.flatten(1, -2))
        where = (source.grid, source.grid_padding)
        attended = softmax_free_attention(
            queries,
            keys,
            values,
            self.landmarks(keys[:, :, num_prefix_tokens:], *where),
            normalization=self.normalization,
            pinv=self.pinv,
            key_padding_mask=source.padding,
            landmark_padding_mask=self.landmarks.landmark_padding_mask(*where),
            impl=self.impl,
        )
        if self.value_conv is not None:
            attended = attended + _convolve(self.value_conv, values, source)
        output: Tensor = self.out_proj(rearrange(attended, "b h n d -> b n (h d)"))
        if context is None:
            output = source.restore(output)
        elif source.padding is not None:
            output = output.masked_fill(source.padding.all(-1)[:, None, None], 0)
        return output.reshape(x.shape)

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"normalization={self.normalization!r}, impl={self.impl!r}"
        )

    def _check(self, name: str, x: Tensor) -> None:
        check_floating(name, x)
        if not 3 <= x.ndim <= 5 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"{name} must be (batch, tokens, {self.embed_dim}) or (batch, *grid, "
                f"{self.embed_dim}) with two or three grid dimensions, got shape {tuple(x.shape)}"
            )
        weight = self.qk_proj.weight
        if x.device != weight.device:
            raise ValueError(
                f"{name} is on {x.device} and the layer on {weight.device}; move one of them"
            )
        within_autocast = autocasts(x.device) and torch.float64 not in (x.dtype, weight.dtype)
        if x.dtype != weight.dtype and not within_autocast:
            raise TypeError(
                f"{name} is {x.dtype} and the layer {weight.dtype}; convert one of them, or use "
                "torch.autocast"
            )

    def _heads(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        return rearrange(projection(tokens), "b n (h d) -> b h n d", h=self.num_heads)


def _convolve(
    convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d, values: Tensor, source: TokenBatch
) -> Tensor:
    """The value convolution over the grid, 0 at prefix tokens: (batch, heads, n, d)."""
    prefix, dimensions = source.num_prefix_tokens, len(convolution.kernel_size)
    if len(source.grid) != dimensions:
        raise ValueError(
            f"value_conv={convolution.kernel_size} is for grids of {dimensions} dimensions, got "
            f"the grid {source.grid}; give one size for each dimension"
        )
    if values.numel() == 0 or 0 in source.grid:
        return torch.zeros_like(values)
    if source.padding is not None:
        values = values.masked_fill(source.padding[:, None, :, None], 0)
    maps = rearrange(values[:, :, prefix:], "b h n d -> (b d) h n").unflatten(-1, source.grid)
    local = rearrange(convolution(maps).flatten(2), "(b d) h n -> b h n d", b=values.shape[0])
    return nn.functional.pad(local, (0, 0, prefix, 0))


def _depthwise_conv(
    num_heads: int,
    size: int | Sequence[int],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    sizes = as_sizes("value_conv", size, dimensions=2)
    if not 1 <= len(sizes) <= 3 or any(s < 1 or s % 2 == 0 for s in sizes):
        raise ValueError(f"value_conv must be odd and positive, one to three sizes, got {size!r}")
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1]
    return convolution(
        num_heads,
        num_heads,
        sizes,  # type: ignore[arg-type]
        padding=tuple(s // 2 for s in sizes),  # type: ignore[arg-type]
        groups=num_heads,
        bias=False,
        device=device,
        dtype=dtype,
    )
