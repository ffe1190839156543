"""The interface of ``torch.nn.MultiheadAttention``, for models that were written for it."""

import copy
from collections.abc import Callable, Collection
from typing import Any, NoReturn, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from softattn.attention import softmax_free_attention
from softattn.common.identity import is_one_tensor
from softattn.common.padding import padding_of_additive_mask
from softattn.common.ranks import SharesSequence
from softattn.common.validation import (
    check_causal,
    check_floating,
    check_mask,
    check_operator_choices,
)
from softattn.factors import attention_factors
from softattn.integrations.swap import SwapReport, linear_of, tied
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler, check_sampler, pool_landmarks
from softattn.pinv import resolve_pinv

_NO_DROPOUT = (
    "dropout acts on attention weights, and this attention never forms them; use dropout=0 and "
    "drop features of the output instead"
)
_NO_ADDED_KEYS = "it adds a key that is not a token, and landmarks are pooled from tokens alone"


class _NoFastPath:
    """Stands where ``nn.TransformerEncoder`` looks for the weights of its fused softmax kernel.

    In eval mode it runs that kernel instead of the layer's own attention, unless one of the weights
    has a ``__torch_function__``.
    """

    @classmethod
    def __torch_function__(cls, *call: object) -> NoReturn:
        raise TypeError("softmax-free attention has no in_proj_weight; see qk_proj and v_proj")


class SoftmaxFreeMultiheadAttention(SharesSequence):
    """Softmax-free attention with the constructor and the forward of ``nn.MultiheadAttention``.

    Queries and keys share one projection, ``qk_proj``, as in SOFT (NeurIPS 2021). Where ``kdim``
    differs from ``embed_dim`` there are two, ``q_proj`` and ``k_proj``. Tokens are a sequence; for
    maps and class tokens see ``SoftmaxFreeAttention``.

    Args:
        embed_dim: features of a query and of the output.
        num_heads: number of heads; it divides ``embed_dim``.
        dropout: must be 0: the attention weights that it would drop are never formed.
        bias: whether the projections have one.
        add_bias_kv: must be False: landmarks are pooled from tokens alone.
        add_zero_attn: must be False for the same reason.
        kdim: features of a key, ``embed_dim`` by default.
        vdim: features of a value, ``embed_dim`` by default.
        batch_first: whether tensors are (batch, tokens, features) instead of (tokens, batch,
            features).
        device: of the parameters.
        dtype: of the parameters.
        landmarks: a ``LandmarkSampler``; ``AvgPoolLandmarks(49)`` by default.
        normalization: ``"softmax"`` by default, whose exact operator is softmax attention; see
            ``softmax_free_attention``.
        pinv: what inverts the landmarks' Gram matrix, see ``softmax_free_attention``.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.

    Raises:
        TypeError: ``landmarks`` is not a sampler.
        ValueError: sizes do not fit, a choice is unknown, or an option is not supported.

    Examples:
        >>> attention = SoftmaxFreeMultiheadAttention(64, 2, batch_first=True)
        >>> x = torch.randn(1, 10_000, 64)
        >>> output, _ = attention(x, x, x, need_weights=False)
    """

    # nn.TransformerEncoder and its layers read these before they run their fused softmax kernel.
    in_proj_weight = in_proj_bias = _NoFastPath()
    _qkv_same_embed_dim = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        landmarks: LandmarkSampler | None = None,
        normalization: str = "softmax",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                "embed_dim and num_heads must be positive, and num_heads must divide embed_dim, "
                f"got {embed_dim} and {num_heads}"
            )
        if dropout:
            raise ValueError(f"dropout must be 0, got {dropout}: {_NO_DROPOUT}")
        for name, value in {"add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn}.items():
            if value:
                raise ValueError(f"{name} must be False: {_NO_ADDED_KEYS}")
        check_sampler(landmarks)
        check_operator_choices(normalization, impl)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout = 0.0
        self.batch_first = batch_first
        self.normalization = normalization
        self.impl = impl

        def projection(features: int) -> nn.Linear:
            return nn.Linear(features, embed_dim, bias=bias, device=device, dtype=dtype)

        if self.kdim == embed_dim:
            self.qk_proj = projection(embed_dim)
        else:
            self.q_proj, self.k_proj = projection(embed_dim), projection(self.kdim)
        self.v_proj = projection(self.vdim)
        self.out_proj = projection(embed_dim)
        self.landmarks = AvgPoolLandmarks() if landmarks is None else landmarks
        self.pinv = resolve_pinv(pinv, impl)

    @classmethod
    def from_multihead_attention(
        cls,
        attention: nn.MultiheadAttention,
        *,
        landmarks: LandmarkSampler | None = None,
        normalization: str = "softmax",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        impl: str = "auto",
    ) -> Self:
        """Makes one with the projections of ``attention``.

        ``qk_proj`` is the mean of the projections of queries and keys. Where these two were equal,
        the result equals ``attention`` up to the landmarks' approximation; elsewhere it needs
        training. Dropout of attention weights is left out.

        Args:
            attention: what to carry over; it is not changed.
            landmarks: see the constructor; the sampler is used, not copied.
            normalization: see the constructor.
            pinv: see the constructor.
            impl: see the constructor.

        Raises:
            ValueError: ``attention`` has ``add_bias_kv`` or ``add_zero_attn``.
        """
        obstacle = _obstacle(attention)
        if obstacle is not None:
            raise ValueError(f"attention cannot be carried over: {obstacle}")
        own = cls(
            attention.embed_dim,
            attention.num_heads,
            bias=attention.in_proj_bias is not None,
            kdim=attention.kdim,
            vdim=attention.vdim,
            batch_first=attention.batch_first,
            device="meta",
            landmarks=landmarks,
            normalization=normalization,
            pinv=pinv,
            impl=impl,
        )
        (w_q, w_k, w_v), (b_q, b_k, b_v) = _weights(attention), _biases(attention)
        if own.kdim == own.embed_dim:
            bias = None if b_q is None or b_k is None else tied(b_q, b_k)
            own.qk_proj = linear_of(tied(w_q, w_k), bias)
        else:
            own.q_proj, own.k_proj = linear_of(w_q, b_q), linear_of(w_k, b_k)
        own.v_proj = linear_of(w_v, b_v)
        own.out_proj = linear_of(attention.out_proj.weight, attention.out_proj.bias)
        return own.train(attention.training)

    def __call__(
        self, query: Tensor, key: Tensor | None, value: Tensor, *arguments: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Calls ``forward`` with the hooks of the module.

        Self-attention is recognised here, before any hook runs: FSDP's mixed precision and other
        hooks may replace each argument by a copy of its own.
        """
        query, key = _without_repetition(query, key)
        return super().__call__(query, key, value, *arguments, **options)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from ``query`` to ``key``.

        It is self-attention where ``key`` is None, the tensor ``query`` itself, or a view of the
        same memory with the same shape and strides; the gradient then reaches whichever of the two
        has one. Anything else is cross-attention, also a copy of ``query``. Under ``torch.compile``
        a view counts as a copy.

        ``need_weights`` is True by default, as in ``nn.MultiheadAttention``. It costs n_q × n_k
        memory; pass False to stay linear in the tokens.

        Args:
            query: (batch, n_q, embed_dim), or (n_q, batch, embed_dim) without ``batch_first``, or
                (n_q, embed_dim) without a batch.
            key: likewise, n_k tokens of kdim features; None is self-attention.
            value: likewise, n_k tokens of vdim features.
            key_padding_mask: (batch, n_k), or (n_k,) without a batch. Bool, True at padding; or
                floating point, 0 at tokens and −1000 or less at padding, such as −inf. Padding is
                ignored. The output is 0 for a sample that is all padding, and for padded queries in
                self-attention.
            need_weights: whether to return the attention weights too.
            attn_mask: must be None: landmarks stand for many tokens, so pairs of tokens cannot be
                masked.
            average_attn_weights: whether to return the mean of the weights over the heads.
            is_causal: must be False for the same reason.

        Returns:
            The output in the layout of ``query``, and the weights or None. The weights are (batch,
            n_q, n_k), or (batch, num_heads, n_q, n_k) where they are not averaged, without the
            batch where there is none. Single weights can be a little below 0. The weights of a
            query sum to 1 with ``"softmax"`` and ``"token"`` only.

        Raises:
            TypeError: inputs are not floating point, or the mask is neither bool nor floating.
            ValueError: shapes do not fit, the mask holds other numbers, or an option is not
                supported.
            RuntimeError: the mask holds other numbers in a compiled or exported graph.
        """
        check_causal(is_causal)
        if attn_mask is not None:
            raise ValueError(
                "attn_mask must be None: it masks pairs of tokens, and landmarks stand for many "
                "tokens; use key_padding_mask for padding"
            )
        if need_weights:
            self.check_one_rank("need_weights=True")
        query, key = _without_repetition(query, key)
        is_self = key is None
        if is_self and self.kdim != self.embed_dim:
            raise ValueError(
                f"key=None is self-attention, which needs kdim={self.embed_dim}, the embed_dim; "
                f"kdim is {self.kdim}: give a key"
            )
        key = query if key is None else key
        self._check(query, key, value)
        batched = query.ndim == 3
        query, key, value = (self._batch_first(tokens) for tokens in (query, key, value))
        padding = _as_padding(key_padding_mask, key, batched)
        if padding is not None:
            key, value = (tokens.masked_fill(padding[..., None], 0) for tokens in (key, value))
        q_proj, k_proj = self._query_and_key_projections()
        keys = self._heads(k_proj, key)
        queries = keys if is_self else self._heads(q_proj, query)
        landmarks, landmark_padding = pool_landmarks(
            self.landmarks, keys, padding, group=self.context_group
        )
        options: dict[str, Any] = {
            "normalization": self.normalization,
            "pinv": self.pinv,
            "key_padding_mask": padding,
            "landmark_padding_mask": landmark_padding,
        }
        values = self._heads(self.v_proj, value)
        attended = softmax_free_attention(
            queries,
            keys,
            values,
            landmarks,
            group=self.context_group,
            impl=self.impl,
            **options,
        )
        output: Tensor = self.out_proj(rearrange(attended, "b h n d -> b n (h d)"))
        without_output = padding
        if not is_self:
            # The part of this rank may be all padding where others' are not.
            of_all = padding if self.context_group is None else landmark_padding
            without_output = None if of_all is None else of_all.all(-1, keepdim=True)
        if without_output is not None:
            output = output.masked_fill(without_output[..., None], 0)
        weights = None
        if need_weights:
            factors = attention_factors(queries, keys, landmarks, **options)
            weights = factors.rows(torch.arange(queries.shape[2])).to(output.dtype)
            weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"batch_first={self.batch_first}, normalization={self.normalization!r}, "
            f"impl={self.impl!r}"
        )

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        inputs = {
            "query": (query, self.embed_dim),
            "key": (key, self.kdim),
            "value": (value, self.vdim),
        }
        for name, (tokens, features) in inputs.items():
            check_floating(name, tokens)
            if tokens.is_nested:
                raise TypeError(f"{name} is a nested tensor; pad it and give key_padding_mask")
            if tokens.ndim != query.ndim or not 2 <= tokens.ndim <= 3:
                raise ValueError(
                    "query, key and value must all be batches (3 dimensions), or none of them (2), "
                    f"got {name} of shape {tuple(tokens.shape)}"
                )
            if tokens.shape[-1] != features:
                raise ValueError(
                    f"{name} must have {features} features, got shape {tuple(tokens.shape)}"
                )
        batch = 0 if self.batch_first else 1
        if query.ndim == 3 and query.shape[batch] != key.shape[batch]:
            raise ValueError(
                f"query and key must agree in the batch, dimension {batch} with "
                f"batch_first={self.batch_first}, got shapes {tuple(query.shape)} and "
                f"{tuple(key.shape)}"
            )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                "key and value must agree in all but their features, got shapes "
                f"{tuple(key.shape)} and {tuple(value.shape)}"
            )

    def _query_and_key_projections(self) -> tuple[nn.Linear, nn.Linear]:
        if self.kdim == self.embed_dim:
            return self.qk_proj, self.qk_proj
        return self.q_proj, self.k_proj

    def _batch_first(self, tokens: Tensor) -> Tensor:
        if tokens.ndim == 2:
            return tokens[None]
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _heads(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        return rearrange(projection(tokens), "b n (h d) -> b h n d", h=self.num_heads)


def swap_attention(
    model: nn.Module,
    *,
    names: Collection[str] | None = None,
    landmarks: LandmarkSampler | None = None,
    normalization: str = "softmax",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    impl: str = "auto",
) -> SwapReport:
    """Replaces each ``nn.MultiheadAttention`` by a ``SoftmaxFreeMultiheadAttention``.

    Queries and keys are tied by the mean of their projections, see
    ``SoftmaxFreeMultiheadAttention.from_multihead_attention``, so the model needs training. Modules
    of an ``nn.TransformerDecoderLayer``, which is usually causal or attends to another sequence,
    are left alone unless they are named. So are modules that cannot be carried over.

    Args:
        model: changed in place.
        names: names of the modules to swap, all of them by default.
        landmarks: a ``LandmarkSampler``, of which each module gets a copy;
            ``AvgPoolLandmarks(49)`` by default.
        normalization: see ``softmax_free_attention``.
        pinv: see ``softmax_free_attention``.
        impl: see ``softmax_free_attention``.

    Returns:
        What was swapped and what was left alone.

    Raises:
        TypeError: ``landmarks`` is not a sampler.
        ValueError: a name does not belong to an ``nn.MultiheadAttention``, there is nothing to
            swap, or a choice is unknown. The model is then unchanged.
    """
    if isinstance(model, nn.MultiheadAttention):
        raise ValueError(
            "model is itself the attention, which cannot be swapped in place; use "
            "SoftmaxFreeMultiheadAttention.from_multihead_attention"
        )
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.MultiheadAttention)
    }
    unknown = set(names or ()) - set(found)
    if unknown:
        raise ValueError(
            f"names must be those of an nn.MultiheadAttention of the model ({', '.join(found)}), "
            f"got {', '.join(sorted(unknown))}"
        )
    left_alone = {}
    replacements: dict[nn.MultiheadAttention, SoftmaxFreeMultiheadAttention] = {}
    swapped = {}
    for name, attention in found.items():
        reason = _reason_to_leave(model, name, attention, names)
        if reason is not None:
            left_alone[name] = reason
            continue
        replacements[attention] = SoftmaxFreeMultiheadAttention.from_multihead_attention(
            attention,
            landmarks=copy.deepcopy(landmarks),
            normalization=normalization,
            pinv=pinv,
            impl=impl,
        )
        swapped[name] = f"without its dropout {attention.dropout}" if attention.dropout else ""
    report = SwapReport(
        swapped, left_alone, ("queries and keys share the mean of their projections",)
    )
    if not swapped:
        raise ValueError(f"the model has no nn.MultiheadAttention to swap: {report}")
    for name in swapped:
        model.set_submodule(name, replacements[found[name]])
    return report


def _reason_to_leave(
    model: nn.Module,
    name: str,
    attention: nn.MultiheadAttention,
    names: Collection[str] | None,
) -> str | None:
    """Why the attention of this name is not swapped, or None where it is."""
    if names is not None and name not in names:
        return "it is not among the names"
    parent = model.get_submodule(name.rpartition(".")[0])
    if names is None and isinstance(parent, nn.TransformerDecoderLayer):
        return "decoders are usually causal or attend to another sequence; swap it by its name"
    return _obstacle(attention)


def _obstacle(attention: nn.MultiheadAttention) -> str | None:
    """Why an attention cannot be carried over, or None where it can."""
    if type(attention) is not nn.MultiheadAttention:
        return f"{type(attention).__name__} may compute something other than nn.MultiheadAttention"
    if attention.bias_k is not None:
        return f"add_bias_kv is True: {_NO_ADDED_KEYS}"
    if attention.add_zero_attn:
        return f"add_zero_attn is True: {_NO_ADDED_KEYS}"
    return None


def _weights(attention: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    if attention.in_proj_weight is not None:
        return attention.in_proj_weight.chunk(3)
    return attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight


def _biases(attention: nn.MultiheadAttention) -> tuple[Tensor | None, ...]:
    bias = attention.in_proj_bias
    return (None, None, None) if bias is None else bias.chunk(3)


def _without_repetition(query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Query and key, with None for the key where the two are one tensor."""
    if key is None or not is_one_tensor(query, key):
        return query, key
    # One of two views may be detached: the other one takes the gradient.
    return (query if query.requires_grad else key), None


def _as_padding(mask: Tensor | None, keys: Tensor, batched: bool) -> Tensor | None:
    """The mask as bool (batch, n_k), from a bool or an additive one."""
    if isinstance(mask, Tensor) and mask.is_floating_point():
        mask = padding_of_additive_mask("key_padding_mask", mask)
    if isinstance(mask, Tensor) and not batched:
        mask = mask[None]
    check_mask("key_padding_mask", mask, tuple(keys.shape[:2]), keys.device)
    return mask
