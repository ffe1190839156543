"""Softmax-free attention as an attention implementation of Hugging Face's transformers."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softattn.attention import softmax_free_attention
from softattn.common.key_weights import mean_key
from softattn.common.padding import padding_of_additive_mask
from softattn.common.validation import check_causal, check_choice, check_operator_choices
from softattn.integrations.swap import SwapReport
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler, check_sampler, pool_landmarks
from softattn.pinv import resolve_pinv

_PAIRS = "landmarks stand for many tokens, so pairs of tokens cannot be masked"
_NO_LOGITS = "it is added to logits, and this attention has none"

_OWN_SOFTMAX = (
    "this is softattn's padding mask, and the model uses it in a softmax of its own: its attention "
    "does not ask for an attn_implementation; use another one for this model"
)

# Arguments of an attention function that would change its output, and why they are refused.
_REFUSED = {
    "block_indices": _PAIRS,
    "cache": "keys in pages are not one tensor",
    "cu_seq_lens_q": "landmarks would be pooled over packed sequences as if they were one",
    "cu_seqlens": "landmarks would be pooled over packed sequences as if they were one",
    "head_mask": "it scales attention weights, which are never formed",
    "output_attentions": "attention weights are never formed; see softattn.attention_factors",
    "position_bias": _NO_LOGITS,
    "s_aux": _NO_LOGITS,
    "sinks": _NO_LOGITS,
    "sliding_window": _PAIRS,
    "softcap": "it bounds logits, and this attention has none",
}


def register_attention(
    name: str = "softattn",
    *,
    landmarks: LandmarkSampler | None = None,
    landmarks_from: str = "queries",
    grid: Sequence[int] | None = None,
    num_prefix_tokens: int = 0,
    normalization: str = "softmax",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    impl: str = "auto",
) -> None:
    """Makes softmax-free attention an ``attn_implementation`` of transformers.

    It works in models that attend in both directions and that call transformers'
    ``AttentionInterface``. ``set_attention`` checks the latter; ``from_config`` and
    ``from_pretrained`` accept the name for any model.

    Queries and keys keep their own projections. ``"softmax"``, the default normalization, has the
    model's own softmax attention as its exact operator, see ``softmax_free_attention``. What is
    left to approximate is the kernel between queries and keys through the landmarks, and a model
    that was trained with softmax recovers from it with some training.

    The first forward refuses, with the reason, what is not supported: causal attention, masks other
    than padding, dropout of attention weights, biases and windows. It also refuses models that add
    the mask to logits of their own, where they are given a mask.

    A saved model does not keep the implementation: its weights load with transformers' default
    unless ``attn_implementation`` is given again.

    Args:
        name: the value of ``attn_implementation``; a name can be registered again.
        landmarks: a ``LandmarkSampler`` without parameters; ``AvgPoolLandmarks(49)`` by default.
        landmarks_from: ``"queries"`` or ``"keys"``: which of them landmarks are pooled from. Where
            there are more or fewer queries than keys it is the keys, because the padding of such
            queries is not known. ``"keys"`` is better where queries are far from all keys, see
            docs/integrations.md.
        grid: the sizes of a map of tokens, for a vision model; one dimension by default.
        num_prefix_tokens: number of tokens before the grid, such as class and register tokens;
            landmarks are not pooled from them.
        normalization: see ``softmax_free_attention``.
        pinv: see ``softmax_free_attention``.
        impl: see ``softmax_free_attention``.

    Raises:
        TypeError: ``landmarks`` is not a sampler.
        ValueError: ``landmarks`` has parameters, a choice is unknown, or the name belongs to
            another implementation.

    Examples:
        >>> register_attention("softattn", landmarks=AvgPoolLandmarks(64))
        >>> model = AutoModel.from_config(BertConfig(), attn_implementation="softattn")
    """
    taken = ALL_ATTENTION_FUNCTIONS.get(name)
    if name == "eager" or not (taken is None or isinstance(taken, _SoftmaxFreeAttention)):
        raise ValueError(f"name {name!r} belongs to another implementation; choose another one")
    check_sampler(landmarks)
    check_choice("landmarks_from", landmarks_from, ("queries", "keys"))
    check_operator_choices(normalization, impl)
    sampler = AvgPoolLandmarks() if landmarks is None else landmarks
    if any(True for _ in sampler.parameters()):
        raise ValueError(
            "landmarks must have no parameters, because these would belong to no model, got "
            f"{type(sampler).__name__}; use softattn.AvgPoolLandmarks"
        )
    attention = _SoftmaxFreeAttention(
        sampler,
        landmarks_from,
        None if grid is None else tuple(grid),
        num_prefix_tokens,
        normalization,
        resolve_pinv(pinv, impl),
        impl,
    )
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _padding_mask)


def set_attention(model: PreTrainedModel, name: str = "softattn") -> SwapReport:
    """Sets a registered implementation in a model, and checks that the model uses it.

    transformers accepts any registered ``attn_implementation`` for any model, also for those whose
    attention never asks for it. This function refuses such models.

    Args:
        model: changed in place, with its submodels; its weights stay.
        name: as given to ``register_attention``.

    Returns:
        The attention modules that now use it, and the submodels whose attention does not.

    Raises:
        ValueError: the name is not registered, or no attention of the model asks for its
            implementation.

    Examples:
        >>> register_attention("softattn", landmarks=AvgPoolLandmarks(64))
        >>> print(set_attention(AutoModel.from_config(BertConfig())))
    """
    if not isinstance(ALL_ATTENTION_FUNCTIONS.get(name), _SoftmaxFreeAttention):
        raise ValueError(f"name {name!r} is not registered; call register_attention({name!r})")
    asking = {path: m for path, m in model.named_modules() if _asks_for_implementation(m)}
    before = model.config._attn_implementation
    if asking:
        model.set_attn_implementation(name)
    swapped = [path for path, m in asking.items() if m.config._attn_implementation == name]
    if not swapped:
        model.set_attn_implementation(before)
        raise ValueError(
            f"the attention of {type(model).__name__} does not ask for its attn_implementation, so "
            "softattn cannot be set in it"
        )
    left_alone = {
        path: "it does not follow the attn_implementation of its model"
        for path in asking
        if path not in swapped
    }
    left_alone |= {
        path: "its attention does not ask for an attn_implementation"
        for path, m in model.named_modules()
        if isinstance(m, PreTrainedModel) and not any(map(_asks_for_implementation, m.modules()))
    }
    note = "a saved model does not keep it: give attn_implementation again when loading"
    return SwapReport(dict.fromkeys(swapped, ""), left_alone, (note,))


@dataclass(frozen=True)
class _SoftmaxFreeAttention:
    """An attention function of transformers."""

    landmarks: LandmarkSampler
    landmarks_from: str
    grid: tuple[int, ...] | None
    num_prefix_tokens: int
    normalization: str
    pinv: Callable[[Tensor], Tensor]
    impl: str

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: "_PaddingMask | Tensor | None",
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **others: object,
    ) -> tuple[Tensor, None]:
        """Maps (batch, heads, n, d) to (batch, n, heads, d), in the dtype of ``value``.

        ``attention_mask`` is what ``_padding_of`` takes. Grouped queries share their keys.
        """
        _check_causal(module, is_causal)
        _check_options(dropout, others)
        padding = _padding_of(attention_mask)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
        landmarks, landmark_padding = pool_landmarks(
            self.landmarks,
            self._tokens_to_pool(query, key, padding),
            padding,
            grid=self.grid,
            num_prefix_tokens=self.num_prefix_tokens,
        )
        attended = softmax_free_attention(
            query,
            key,
            value,
            landmarks,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=scaling,
            key_padding_mask=padding,
            landmark_padding_mask=landmark_padding,
            impl=self.impl,
        )
        return attended.transpose(1, 2).contiguous(), None

    def _tokens_to_pool(self, query: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        """The keys, or the queries in the place to which the operator moves them."""
        if self.landmarks_from == "keys" or query.shape[2] != key.shape[2]:
            return key
        if self.normalization != "softmax":
            return query
        return (query + mean_key(key, padding)).to(query.dtype)


@dataclass(frozen=True)
class _PaddingMask:
    """The padding mask of a batch.

    It is not a tensor: a model with a softmax of its own would add a tensor to its logits, without
    an error.

    kept: (batch, n_k), False where a token is padding.
    """

    kept: Tensor

    def to(self, *args: Any, **kwargs: Any) -> "_PaddingMask":
        """Follows a model that is spread over devices."""
        return _PaddingMask(self.kept.to(*args, **kwargs))

    # Whatever else a model does to its mask shows that it has a softmax of its own.

    @classmethod
    def __torch_function__(cls, *call: object) -> NoReturn:
        raise TypeError(_OWN_SOFTMAX)

    def __getitem__(self, index: object) -> NoReturn:
        raise TypeError(_OWN_SOFTMAX)

    def __radd__(self, other: object) -> NoReturn:
        raise TypeError(_OWN_SOFTMAX)

    __rsub__ = __radd__

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name}: {_OWN_SOFTMAX}")


def _padding_mask(
    *,
    mask_function: Callable[..., object],
    attention_mask: Tensor | None = None,
    **_others: object,
) -> _PaddingMask | None:
    """Makes the mask that the model passes to its attention, from (batch, n_k), True at tokens.

    Raises:
        ValueError: the model asks for a mask of pairs of tokens.
    """
    if mask_function is not bidirectional_mask_function:
        raise ValueError(
            "the model asks for causal attention, a window or another mask of pairs of tokens. "
            "Landmarks are pooled over the whole sequence, so every token would see every other; "
            "use another attn_implementation for this model"
        )
    return None if attention_mask is None else _PaddingMask(attention_mask)


def _asks_for_implementation(module: nn.Module) -> bool:
    """Whether the forward of a module looks up the ``AttentionInterface``."""
    # All models of transformers call it by this name.
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _check_causal(module: nn.Module, is_causal: bool | None) -> None:
    """Raises ValueError unless the call or its module says that attention is not causal."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", None)
    if is_causal is None:
        name = type(module).__name__
        raise ValueError(
            f"{name} has no attribute is_causal, and transformers takes such a module for causal. "
            f"If it attends in both directions, set {name}.is_causal = False before the call"
        )
    check_causal(is_causal)


def _check_options(dropout: float, others: dict[str, object]) -> None:
    """Raises ValueError for an option that would change the output."""
    for name, reason in _REFUSED.items():
        if others.get(name) is not None and others[name] is not False:
            raise ValueError(f"the model asks for {name}, which is not supported: {reason}")
    if dropout:
        raise ValueError(
            f"the model asks for dropout {dropout} of attention weights, which are never formed; "
            "set it to 0 in its config, such as attention_probs_dropout_prob=0 or "
            "attention_dropout=0"
        )


def _padding_of(attention_mask: "_PaddingMask | Tensor | None") -> Tensor | None:
    """(batch, n_k), True at padding.

    Raises:
        ValueError: the mask is not a padding mask.
    """
    if attention_mask is None:
        return None
    if isinstance(attention_mask, _PaddingMask):
        return ~attention_mask.kept
    if isinstance(attention_mask, Tensor):
        additive = attention_mask.is_floating_point() and attention_mask.ndim == 4
        # Some models make a mask of their own, which is the same for all heads and queries.
        if additive and attention_mask.shape[1:3] == (1, 1):
            return padding_of_additive_mask("attention_mask", attention_mask[:, 0, 0])
        kind = f"{attention_mask.dtype} of shape {tuple(attention_mask.shape)}"
    else:
        kind = type(attention_mask).__name__
    raise ValueError(
        "attention_mask must be the padding mask that transformers makes for this implementation, "
        f"or an additive one (batch, 1, 1, tokens), got {kind}; {_PAIRS}"
    )
