"""The layer."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.attention import softmax_free_attention, softmax_free_attention_varlen
from softattn.common.identity import without_repetition
from softattn.common.precision import autocasts
from softattn.common.ranks import SharesSequence
from softattn.common.validation import (
    check_causal,
    check_floating,
    check_near_field,
    check_operator_choices,
    check_scale,
)
from softattn.factors import AttentionFactors, attention_factors
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler, check_sampler
from softattn.landmarks.parts import exchange_parts
from softattn.layer.grid_tokens import TokenBatch, arrange_tokens
from softattn.layer.packed_tokens import PackedTokens, as_packed, is_packed
from softattn.layer.value_conv import (
    check_parts_for_value_conv,
    convolve_values,
    make_value_conv,
)
from softattn.pinv import resolve_pinv


class SoftmaxFreeAttention(SharesSequence):
    """Multi-head softmax-free attention, linear in the number of tokens.

    Queries and keys share one projection, as in SOFT (NeurIPS 2021); cross-attention shares it too.

    Args:
        embed_dim: features of a token, in and out.
        num_heads: heads.
        head_dim: d, features of a head; embed_dim / num_heads by default.
        landmarks: a ``LandmarkSampler``; ``AvgPoolLandmarks(49)`` by default.
        normalization: ``"token"``, ``"softmax"``, ``"none"`` or ``"landmark"``, see
            ``softmax_free_attention``.
        pinv: what inverts the landmarks' Gram matrix, see ``softmax_free_attention``.
        scale: s in the kernel, 1/√d by default.
        qk_norm: divide the queries and keys of each head by their root mean square. All keys then
            have one norm, and ``"token"`` approximates softmax attention.
        near_field: how many tokens of like content are exact among themselves, see
            ``softmax_free_attention``. Above 1 it needs ``"token"``, and ``forward`` no context.
        value_conv: size of the published depthwise convolution over the values, which is added to
            the output: an odd int for maps of two dimensions, one for each dimension of other
            grids, 0 for none. One filter a head.
        bias: whether the three projections have one.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes do not fit, or a choice is unknown or cannot run.

    Examples:
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
        normalization: str = "token",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        scale: float | None = None,
        qk_norm: bool = False,
        near_field: int = 1,
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
        check_sampler(landmarks)
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}; or "
                "give head_dim"
            )
        check_operator_choices(normalization, impl)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.normalization = normalization
        self.scale = None if scale is None else check_scale(scale)
        self.qk_norm = qk_norm
        self.near_field = check_near_field(near_field, normalization, crossed=False)
        self.impl = impl
        inner = self.num_heads * self.head_dim
        self.qk_proj = nn.Linear(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, inner, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, embed_dim, bias=bias, device=device, dtype=dtype)
        self.landmarks = AvgPoolLandmarks() if landmarks is None else landmarks
        self.pinv = resolve_pinv(pinv, impl)
        self.value_conv = make_value_conv(num_heads, value_conv, device, dtype)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        num_prefix_tokens: int = 0,
        cu_seqlens: Tensor | None = None,
        context_cu_seqlens: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attends from the tokens of ``x`` to themselves, or to those of ``context``.

        ``grid``, ``key_padding_mask`` and ``num_prefix_tokens`` describe the tokens that are
        attended to.

        Sequences of different lengths need no padding: they come as a nested tensor of layout
        ``torch.jagged``, (batch, jagged tokens, embed_dim), or packed one after the other with
        ``cu_seqlens``. Each gets the output that it would get alone. See
        ``softmax_free_attention_varlen`` for the cost.

        Args:
            x: (batch, tokens, embed_dim), or a channels-last map (batch, *grid, embed_dim) of two
                or three grid dimensions; jagged; or packed, (total, embed_dim).
            context: likewise; landmarks, keys and values then come from it. ``x`` itself, or
                another view of all of it, is self-attention.
            grid: one, two or three sizes whose product is the number of tokens without prefix
                tokens, in row-major order; by default the map's, or one dimension.
            key_padding_mask: (batch, tokens), or (batch, *grid) for a map; True where a token is
                padding. Padding is ignored; its output is 0, and so is that of a sample that is
                all padding. On a grid of one dimension a sample gets the output that it would get
                without its padding.
            num_prefix_tokens: how many tokens before the grid, such as a class token, are queries
                and keys but have no part in the grid, the landmarks and the value convolution.
                Of sequences of different lengths each begins with its own.
            cu_seqlens: (batch + 1,), int32 or int64: where each sequence that is packed in ``x``
                begins, and total. On the CPU or the device of ``x``, which is then read back.
            context_cu_seqlens: likewise of ``context``.
            is_causal: not offered; True raises and says why.

        Returns:
            The shape of ``x``, jagged where ``x`` is, in its dtype, or autocast's.

        Raises:
            TypeError: inputs that are not floating point, of another dtype than the parameters, a
                mask that is not bool, or offsets that are not int32 or int64.
            ValueError: shapes that do not fit each other, the grid, the offsets or the layer.
        """
        check_causal(is_causal)
        if context_cu_seqlens is None or context_cu_seqlens is cu_seqlens:
            x, context = without_repetition(x, context)
            context_cu_seqlens = None if context is None else context_cu_seqlens
        self._check_value_conv(context)
        if is_packed(x, cu_seqlens) or is_packed(context, context_cu_seqlens):
            self.check_one_rank("sequences of different lengths")
            if grid is not None or key_padding_mask is not None:
                raise ValueError(
                    "sequences of different lengths have one dimension each and no padding: leave "
                    "out grid and key_padding_mask; maps of different sizes must be padded to one"
                )
            if context is None and context_cu_seqlens is not None:
                raise ValueError(
                    "context_cu_seqlens says where the sequences of context begin: give context, "
                    "or leave it out"
                )
            queries_from = self._as_packed("x", x, cu_seqlens)
            keys_from = None
            if context is not None:
                keys_from = self._as_packed("context", context, context_cu_seqlens)
            return self._attend_packed(queries_from, keys_from, num_prefix_tokens)

        inputs = self._project(x, context, grid, key_padding_mask, num_prefix_tokens)
        source = inputs.source
        values = self._heads(self.v_proj, source.features)
        attended = softmax_free_attention(
            inputs.queries,
            inputs.keys,
            values,
            inputs.landmarks,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=self.scale,
            near_field=self.near_field,
            key_padding_mask=source.padding,
            landmark_padding_mask=inputs.landmark_padding_mask,
            group=self.context_group,
            impl=self.impl,
        )
        if self.value_conv is not None:
            if source.padding is not None:
                values = values.masked_fill(source.padding[:, None, :, None], 0)
            attended = attended + self._convolved(values, source)
        output: Tensor = self.out_proj(rearrange(attended, "b h n d -> b n (h d)"))
        if context is None:
            output = source.restore(output)
        else:
            padding = source.padding
            if self.context_group is not None and num_prefix_tokens == 0:
                # The part of this rank may be all padding where others' are not.
                padding = inputs.landmark_padding_mask
            if padding is not None:
                output = output.masked_fill(padding.all(-1)[:, None, None], 0)
        return output.reshape(x.shape)

    def attention_factors(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        num_prefix_tokens: int = 0,
    ) -> AttentionFactors:
        """The attention matrix of each head, for a call with these arguments, in factors.

        Its rows are the tokens of ``x`` and its columns those that are attended to, maps in
        row-major order: prefix tokens first, padding in its place with weights of 0. Rows times
        projected values are the input of ``out_proj``, except for what ``value_conv`` adds.
        Sequences of different lengths have one matrix each: give them one by one.

        Args:
            x: (batch, tokens, embed_dim) or (batch, *grid, embed_dim), see ``forward``.
            context: see ``forward``.
            grid: see ``forward``.
            key_padding_mask: see ``forward``.
            num_prefix_tokens: see ``forward``.

        Returns:
            Factors with batch and heads in front, see ``softattn.AttentionFactors``.

        Raises:
            TypeError: see ``forward``.
            ValueError: see ``forward``; or ranks share the sequence.
        """
        self.check_one_rank("attention_factors")
        x, context = without_repetition(x, context)
        inputs = self._project(x, context, grid, key_padding_mask, num_prefix_tokens)
        source = inputs.source
        factors = attention_factors(
            inputs.queries,
            inputs.keys,
            inputs.landmarks,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=self.scale,
            near_field=self.near_field,
            key_padding_mask=source.padding,
            landmark_padding_mask=inputs.landmark_padding_mask,
        )
        if source.places is None:
            return factors
        return factors.reordered(None if context is not None else source.places, source.places)

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, "
            f"normalization={self.normalization!r}, scale={self.scale}, qk_norm={self.qk_norm}, "
            f"near_field={self.near_field}, impl={self.impl!r}"
        )

    def _project(
        self,
        x: Tensor,
        context: Tensor | None,
        grid: Sequence[int] | None,
        key_padding_mask: Tensor | None,
        num_prefix_tokens: int,
    ) -> "_Projected":
        """Checks the inputs of a call, arranges and projects them."""
        for name, tokens in (("x", x), ("context", x if context is None else context)):
            self._check(name, tokens)
            is_map = not tokens.is_nested and 3 <= tokens.ndim <= 5
            if not is_map or tokens.shape[-1] != self.embed_dim:
                shape = "a nested tensor" if tokens.is_nested else f"shape {tuple(tokens.shape)}"
                raise ValueError(
                    f"{name} must be (batch, tokens, {self.embed_dim}) or (batch, *grid, "
                    f"{self.embed_dim}) with two or three grid dimensions, got {shape}"
                    + (self._advice(name, tokens) if is_map else "")
                )
        source = arrange_tokens(
            x if context is None else context,
            grid,
            key_padding_mask,
            num_prefix_tokens,
            self.context_group,
        )
        keys = self._query_heads(source.features)
        if self.context_group is None:
            where = (source.grid, source.grid_padding)
            landmarks = self.landmarks(keys[:, :, num_prefix_tokens:], *where)
            landmark_padding_mask = self.landmarks.landmark_padding_mask(*where)
        else:
            landmarks, landmark_padding_mask = self.landmarks.forward_over_ranks(
                keys,
                source.grid,
                source.padding,
                group=self.context_group,
                num_prefix_tokens=num_prefix_tokens,
            )
        return _Projected(
            source,
            keys if context is None else self._query_heads(x.flatten(1, -2)),
            None if context is None else keys,
            landmarks,
            landmark_padding_mask,
        )

    def _convolved(self, values: Tensor, source: TokenBatch) -> Tensor:
        """The value convolution of this rank's tokens, (batch, heads, n, d)."""
        assert self.value_conv is not None
        grid = source.grid
        if self.context_group is not None:
            # The sampler has checked the prefix.
            parts = exchange_parts(
                values[:, :, source.num_prefix_tokens :],
                grid,
                source.grid_padding,
                group=self.context_group,
                num_prefix_tokens=0,
            )
            grid = check_parts_for_value_conv(self.value_conv, parts)
        return convolve_values(self.value_conv, values, grid, self.context_group)

    def _advice(self, name: str, tokens: Tensor) -> str:
        """How tokens of another width may become what the layer takes."""
        if tokens.ndim > 3 and tokens.shape[1] == self.embed_dim:
            order = (0, *range(2, tokens.ndim), 1)
            return f"; a channels-first map becomes one by {name}.permute{order}"
        if name == "context":
            return (
                "; for a context of another width use softattn.integrations.torch."
                f"SoftmaxFreeMultiheadAttention(kdim={tokens.shape[-1]})"
            )
        return ""

    def _as_packed(self, name: str, x: Tensor, cu_seqlens: Tensor | None) -> PackedTokens:
        self._check(name, x)
        return as_packed(name, x, self.embed_dim, cu_seqlens)

    def _attend_packed(
        self, queries_from: PackedTokens, keys_from: PackedTokens | None, num_prefix_tokens: int
    ) -> Tensor:
        source = queries_from if keys_from is None else keys_from
        keys = self._normed(self._packed_heads(self.qk_proj, source))
        values = self._packed_heads(self.v_proj, source)
        landmarks, landmark_padding_mask = self.landmarks.forward_varlen(
            keys, source.cu_seqlens, num_prefix_tokens=num_prefix_tokens
        )
        attended = softmax_free_attention_varlen(
            keys
            if keys_from is None
            else self._normed(self._packed_heads(self.qk_proj, queries_from)),
            None if keys_from is None else keys,
            values,
            landmarks,
            queries_from.cu_seqlens,
            None if keys_from is None else keys_from.cu_seqlens,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=self.scale,
            near_field=self.near_field,
            landmark_padding_mask=landmark_padding_mask,
            impl=self.impl,
        )
        if self.value_conv is not None:
            around = [
                convolve_values(
                    self.value_conv,
                    rearrange(sequence, "n h d -> 1 h n d"),
                    (sequence.shape[0] - num_prefix_tokens,),
                )
                for sequence in source.split(values)
            ]
            attended = attended + torch.cat(
                [values[:0], *(rearrange(each, "1 h n d -> n h d") for each in around)]
            )
        return queries_from.restore(self.out_proj(attended.flatten(1)))

    def _check_value_conv(self, context: Tensor | None) -> None:
        if context is not None and self.value_conv is not None:
            raise ValueError(
                "value_conv adds the values around each token to its own output, and in "
                "cross-attention the values are not at the queries' places; use value_conv=0"
            )

    def _check(self, name: str, x: Tensor) -> None:
        check_floating(name, x)
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

    def _query_heads(self, tokens: Tensor) -> Tensor:
        """Queries, or keys, which share the projection: (batch, heads, n, d)."""
        return self._normed(self._heads(self.qk_proj, tokens))

    def _normed(self, heads: Tensor) -> Tensor:
        return nn.functional.rms_norm(heads, (self.head_dim,)) if self.qk_norm else heads

    def _heads(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        return rearrange(projection(tokens), "b n (h d) -> b h n d", h=self.num_heads)

    def _packed_heads(self, projection: nn.Linear, tokens: PackedTokens) -> Tensor:
        return rearrange(projection(tokens.features), "n (h d) -> n h d", h=self.num_heads)


class _Projected(NamedTuple):
    """Queries, keys (None in self-attention) and landmarks of a call, by head."""

    source: TokenBatch
    queries: Tensor
    keys: Tensor | None
    landmarks: Tensor
    landmark_padding_mask: Tensor | None
