"""Softmax-free attention as an attention implementation of Hugging Face's transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softattn.attention import softmax_free_attention
from softattn.common.validation import IMPLEMENTATIONS, NORMALIZATIONS, check_causal, check_choice
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler
from softattn.landmarks.sampler import pool_landmarks
from softattn.pinv import resolve_pinv

# What models hand to an attention function that changes its numbers, and why it cannot be honoured.
_REFUSED = {
    "block_indices": "landmarks stand for many tokens and know no blocks",
    "cache": "keys in pages are not one tensor",
    "cu_seq_lens_q": "landmarks would be pooled over packed sequences as if they were one",
    "cu_seqlens": "landmarks would be pooled over packed sequences as if they were one",
    "head_mask": "it scales attention weights, which are never formed",
    "output_attentions": "attention weights are never formed; see softattn.attention_factors",
    "position_bias": "it is added to logits, which this attention has not",
    "s_aux": "it is added to logits, which this attention has not",
    "sinks": "they are added to logits, which this attention has not",
    "sliding_window": "landmarks stand for many tokens and know no window",
    "softcap": "it bounds logits, which this attention has not",
}


def register_attention(
    name: str = "softattn",
    *,
    landmarks: LandmarkSampler | None = None,
    grid: Sequence[int] | None = None,
    num_prefix_tokens: int = 0,
    normalization: str = "token",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    impl: str = "auto",
) -> None:
    """Makes softmax-free attention an ``attn_implementation`` of transformers.

    Models that attend in both directions then run on it as they are. Their queries and keys are
    not tied: after division by the row sums exp(−s ‖q − k‖² / 2) is the softmax of
    s · (q · k − ‖k‖² / 2) with the model's own scaling s, so queries' norms make no difference, and
    long keys count less than in softmax attention unless all have one norm. Weights that were
    trained with softmax need training again.

    A model refuses in its forward, with the reason, what cannot be honoured: causal attention,
    masks other than padding, dropout of attention weights, biases and windows.

    Args:
        name: what ``attn_implementation`` is then given; a name can be registered again.
        landmarks: a ``LandmarkSampler`` without parameters; ``AvgPoolLandmarks(49)`` by default.
        grid: the sizes of a map of tokens, for a vision model; one dimension by default.
        num_prefix_tokens: how many tokens before the grid, such as class and register tokens, have
            no part in the landmarks.
        normalization: see ``softmax_free_attention``; ``"token"`` stands in for softmax.
        pinv: see there.
        impl: see there.

    Raises:
        TypeError: ``landmarks`` is no sampler.
        ValueError: ``landmarks`` has parameters, a choice is unknown, or the name is another
            implementation's.

    Examples:
        >>> register_attention("softattn", landmarks=AvgPoolLandmarks(64))
        >>> model = AutoModel.from_config(BertConfig(), attn_implementation="softattn")
    """
    taken = ALL_ATTENTION_FUNCTIONS.get(name)
    if name == "eager" or not (taken is None or isinstance(taken, _SoftmaxFreeAttention)):
        raise ValueError(f"name {name!r} is another implementation's; choose one of your own")
    sampler = AvgPoolLandmarks() if landmarks is None else landmarks
    if not isinstance(sampler, LandmarkSampler):
        raise TypeError(
            "landmarks must be a LandmarkSampler such as softattn.AvgPoolLandmarks(49), got "
            f"{landmarks!r}"
        )
    if any(True for _ in sampler.parameters()):
        raise ValueError(
            "landmarks must have no parameters, as they would belong to no model, got "
            f"{type(sampler).__name__}; use softattn.AvgPoolLandmarks"
        )
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("impl", impl, IMPLEMENTATIONS)
    attention = _SoftmaxFreeAttention(
        sampler,
        None if grid is None else tuple(grid),
        num_prefix_tokens,
        normalization,
        resolve_pinv(pinv, impl),
        impl,
    )
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _padding_mask)


@dataclass(frozen=True)
class _SoftmaxFreeAttention:
    """An attention function of transformers."""

    landmarks: LandmarkSampler
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
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **others: object,
    ) -> tuple[Tensor, None]:
        """(batch, heads, n, d) to (batch, n, heads, d), in the dtype of ``value``.

        ``attention_mask`` is what ``_padding_mask`` returns. Grouped queries share their keys.
        """
        # Where neither says, transformers takes a module for causal.
        check_causal(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        _check(attention_mask, dropout, others)
        padding = None if attention_mask is None else ~attention_mask
        landmarks, landmark_padding = pool_landmarks(
            self.landmarks, key, padding, grid=self.grid, num_prefix_tokens=self.num_prefix_tokens
        )
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value, landmarks = (
                tensor.repeat_interleave(groups, 1) for tensor in (key, value, landmarks)
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


def _padding_mask(
    *,
    mask_function: Callable[..., object],
    attention_mask: Tensor | None = None,
    **_others: object,
) -> Tensor | None:
    """The model's padding mask (batch, n_k), True where a token is none, as it came.

    Raises:
        ValueError: the model asks for a mask of pairs of tokens.
    """
    if mask_function is not bidirectional_mask_function:
        raise ValueError(
            "the model asks for causal attention, a window or another mask of pairs of tokens, and "
            "landmarks are pooled over the whole sequence: through them every token would see "
            "every other; use another attn_implementation for it"
        )
    return attention_mask


def _check(attention_mask: Tensor | None, dropout: float, others: dict[str, object]) -> None:
    for name, reason in _REFUSED.items():
        if others.get(name) is not None and others[name] is not False:
            raise ValueError(f"the model asks for {name}, which is not offered: {reason}")
    if dropout:
        raise ValueError(
            f"the model asks for dropout {dropout} of attention weights, which are never formed; "
            "set it to 0 in its config, such as attention_probs_dropout_prob=0 or "
            "attention_dropout=0"
        )
    if attention_mask is None:
        return
    if attention_mask.ndim != 2 or attention_mask.dtype != torch.bool:
        raise ValueError(
            "attention_mask must be the padding mask (batch, tokens) of a model that makes its "
            f"masks for the attention implementation, got {attention_mask.dtype} of shape "
            f"{tuple(attention_mask.shape)}; landmarks know no pairs of tokens"
        )
