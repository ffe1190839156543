"""Softmax-free attention in the vision transformers of timm."""

import copy
from collections.abc import Callable, Collection

import torch
from einops import rearrange
from timm.models import register_notrace_module
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from softattn.attention import softmax_free_attention
from softattn.common.ranks import SharesSequence
from softattn.common.validation import check_causal, check_operator_choices
from softattn.factors import AttentionFactors, attention_factors
from softattn.integrations.swap import SwapReport, linear_of, tied
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler, check_sampler, pool_landmarks
from softattn.pinv import resolve_pinv


class PatchGrid:
    """The grid of patches of the current image: a forward hook of the patch embedding.

    Args:
        model: the model that the images go through.
    """

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model
        self.sizes: tuple[int, int] = model.patch_embed.grid_size
        self._checkpointed: tuple[int, int] | None = None

    def __call__(self, patch_embed: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Stores the grid that ``patch_embed`` makes of an image, which may be of any size.

        Raises:
            ValueError: the size changes under activation checkpointing. The backward pass would
                recompute an earlier image with the grid of the last one.
        """
        if not isinstance(args[0], Tensor):
            return  # torch.fx traces the model, and the sizes of its image are symbols
        height, width = args[0].shape[-2:]
        self.sizes = patch_embed.dynamic_feat_size((height, width))  # type: ignore[operator]
        if self.model.grad_checkpointing and torch.is_grad_enabled():
            if self._checkpointed not in (None, self.sizes):
                raise ValueError(
                    "under activation checkpointing all images must have one size: their grid was "
                    f"{self._checkpointed} and is {self.sizes}; use set_grad_checkpointing(False)"
                )
            self._checkpointed = self.sizes


@register_notrace_module
class SoftmaxFreeViTAttention(SharesSequence):
    """Softmax-free self-attention that replaces the ``Attention`` of a timm vision transformer.

    ``qk_proj``, ``qk_norm`` and ``v_proj`` replace its ``qkv``, ``q_norm`` and ``k_norm``. The
    modules after the attention (scale norm, gate, ``proj``, ``proj_drop``) are kept.

    Args:
        softmax: the attention to replace.
        grid: the grid of the image's patches.
        num_prefix_tokens: number of class and register tokens before the patches. They are queries
            and keys; landmarks are not pooled from them.
        landmarks: a ``LandmarkSampler``.
        normalization: see ``softmax_free_attention``.
        pinv: see ``softmax_free_attention``.
        impl: see ``softmax_free_attention``.

    Raises:
        TypeError: ``landmarks`` is not a sampler.
        ValueError: a choice is unknown.
    """

    def __init__(
        self,
        softmax: Attention,
        grid: PatchGrid,
        num_prefix_tokens: int,
        *,
        landmarks: LandmarkSampler | None = None,
        normalization: str = "softmax",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_sampler(landmarks)
        check_operator_choices(normalization, impl)
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.num_heads = softmax.num_heads
        self.scale = softmax.scale
        self.normalization = normalization
        self.impl = impl
        w_q, w_k, w_v = softmax.qkv.weight.chunk(3)
        b_q = b_k = b_v = None
        if softmax.qkv.bias is not None:
            b_q, b_k, b_v = softmax.qkv.bias.chunk(3)
        self.qk_proj = linear_of(tied(w_q, w_k), None if b_q is None else tied(b_q, b_k))
        self.v_proj = linear_of(w_v, b_v)
        self.qk_norm = _tied_norm(softmax.q_norm, softmax.k_norm)
        self.landmarks = AvgPoolLandmarks() if landmarks is None else landmarks
        self.pinv = resolve_pinv(pinv, impl)
        self.norm = softmax.norm
        self.gate = getattr(softmax, "gate", None)  # only later versions of timm have it
        self.proj = softmax.proj
        self.proj_drop = softmax.proj_drop
        self.train(softmax.training)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attends from all tokens to all tokens.

        Args:
            x: (batch, n, dim), prefix tokens first.
            attn_mask: must be None: landmarks stand for many tokens, so pairs of tokens cannot be
                masked.
            is_causal: must be False for the same reason.

        Returns:
            (batch, n, dim).

        Raises:
            ValueError: there is a mask, or ``x`` does not fit the grid of the image.
        """
        check_causal(is_causal)
        if attn_mask is not None:
            raise ValueError(
                "attn_mask must be None: it masks pairs of tokens, and landmarks stand for many "
                "tokens"
            )
        keys, landmarks, landmark_padding = self._keys_and_landmarks(x)
        attended = softmax_free_attention(
            keys,
            None,
            self._heads(self.v_proj(x)),
            landmarks,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=self.scale,
            landmark_padding_mask=landmark_padding,
            group=self.context_group,
            impl=self.impl,
        )
        output: Tensor = self.norm(rearrange(attended, "b h n d -> b n (h d)"))
        if self.gate is not None:
            output = output * self.gate(x).sigmoid()
        output = self.proj_drop(self.proj(output))
        return output

    def attention_factors(self, x: Tensor) -> AttentionFactors:
        """The attention matrices by which ``forward`` multiplies the values, in factors.

        The grid is that of the last image that went through the model.

        Args:
            x: the input of ``forward``, (batch, n, dim); a forward hook of this module gets it.

        Returns:
            Factors of (batch, heads, n, n) matrices with prefix tokens first, see
            ``softattn.AttentionFactors``. ``softattn.plots`` draws them.

        Raises:
            ValueError: ``x`` does not fit the grid of the image.

        Examples:
            >>> inputs = []
            >>> attention = model.blocks[-1].attn
            >>> attention.register_forward_hook(lambda _, args, output: inputs.append(args[0]))
            >>> model(image)
            >>> received = attention.attention_factors(inputs[0]).column_sums()
        """
        self.check_one_rank("attention_factors")
        keys, landmarks, _ = self._keys_and_landmarks(x)
        return attention_factors(
            keys,
            None,
            landmarks,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=self.scale,
        )

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"num_heads={self.num_heads}, num_prefix_tokens={self.num_prefix_tokens}, "
            f"normalization={self.normalization!r}, impl={self.impl!r}"
        )

    def _keys_and_landmarks(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        keys = self.qk_norm(self._heads(self.qk_proj(x)))
        landmarks, landmark_padding = pool_landmarks(
            self.landmarks,
            keys,
            grid=self.grid.sizes,
            num_prefix_tokens=self.num_prefix_tokens,
            group=self.context_group,
        )
        return keys, landmarks, landmark_padding

    def _heads(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n (h d) -> b h n d", h=self.num_heads)


def swap_attention(
    model: VisionTransformer,
    *,
    blocks: Collection[int] | None = None,
    landmarks: LandmarkSampler | None = None,
    normalization: str = "softmax",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    impl: str = "auto",
) -> SwapReport:
    """Replaces the attention of a timm vision transformer by softmax-free attention.

    Landmarks are pooled over the grid of each image, without class and register tokens, so models
    with ``dynamic_img_size`` take images of any size. All parameters are carried over, but queries
    and keys are tied: they share the mean of their projections and of their norms. The model
    therefore needs training, unless these were equal already.

    Args:
        model: a ``VisionTransformer`` of timm, changed in place.
        blocks: indices of the blocks to change, all of them by default.
        landmarks: a ``LandmarkSampler``, of which each attention gets a copy;
            ``AvgPoolLandmarks(49)`` by default.
        normalization: see ``softmax_free_attention``.
        pinv: see ``softmax_free_attention``.
        impl: see ``softmax_free_attention``.

    Returns:
        What was swapped and what was left alone.

    Raises:
        TypeError: the model is not a ``VisionTransformer``, its patch embedding does not tell the
            grid of an image, or ``landmarks`` is not a sampler.
        ValueError: there is no such block, there is nothing to swap, the model drops patches, or a
            choice is unknown. The model is then unchanged.

    Examples:
        >>> model = timm.create_model("vit_tiny_patch16_224")
        >>> print(swap_attention(model, landmarks=AvgPoolLandmarks(49)))
    """
    _check(model)
    to_swap, left_alone = _find_attention(model, blocks)
    report = SwapReport(
        {path: _left_out(attention) for path, attention in to_swap.items()},
        left_alone,
        (
            f"grid of the image, by default {model.patch_embed.grid_size}",
            f"prefix tokens (class and registers) before it: {model.num_prefix_tokens}",
            "queries and keys share the mean of their projections and norms",
        ),
    )
    if not to_swap:
        raise ValueError(f"the model has no attention to swap: {report}")
    grid = PatchGrid(model)
    for path, attention in to_swap.items():
        replacement = SoftmaxFreeViTAttention(
            attention,
            grid,
            model.num_prefix_tokens,
            landmarks=copy.deepcopy(landmarks),
            normalization=normalization,
            pinv=pinv,
            impl=impl,
        )
        model.set_submodule(path, replacement)
    model.patch_embed.register_forward_hook(grid)
    return report


def _check(model: VisionTransformer) -> None:
    if not isinstance(model, VisionTransformer):
        raise TypeError(
            f"model must be a timm VisionTransformer, got {type(model).__name__}, whose grid and "
            "prefix tokens are not known here; put softattn.SoftmaxFreeAttention in it by hand"
        )
    if not hasattr(model.patch_embed, "dynamic_feat_size"):
        raise TypeError(
            "the model's patch_embed must have timm's dynamic_feat_size, which tells the grid of "
            f"an image, got {type(model.patch_embed).__name__}"
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError(
            "the model drops patches in training, and the remaining ones form no grid; make it "
            "with patch_drop_rate=0"
        )


def _find_attention(
    model: VisionTransformer, blocks: Collection[int] | None
) -> tuple[dict[str, Attention], dict[str, str]]:
    """The attention to swap by its path, and the reason for each that is left alone.

    Raises:
        ValueError: there is no such block.
    """
    chosen = set(range(len(model.blocks)) if blocks is None else blocks)
    if not chosen <= set(range(len(model.blocks))):
        raise ValueError(f"blocks must be from 0 to {len(model.blocks) - 1}, got {sorted(chosen)}")
    to_swap: dict[str, Attention] = {}
    left_alone = {}
    for index, block in enumerate(model.blocks):
        name = f"blocks.{index}"
        if index not in chosen:
            left_alone[name] = "it is not among the blocks"
            continue
        found = {
            f"{name}.{path}": module
            for path, module in block.named_modules()
            if type(module) is Attention
        }
        if not found:
            left_alone[name] = f"{type(block).__name__} has no timm.layers.Attention"
        for path, attention in found.items():
            if _alike(attention.q_norm, attention.k_norm):
                to_swap[path] = attention
            else:
                left_alone[path] = "q_norm and k_norm are of different kinds and cannot be tied"
    if model.attn_pool is not None:
        left_alone["attn_pool"] = "it pools tokens and is not self-attention"
    return to_swap, left_alone


def _alike(q_norm: nn.Module, k_norm: nn.Module) -> bool:
    """Whether the norms differ in their parameters alone, and have no statistics."""
    return repr(q_norm) == repr(k_norm) and not [*q_norm.buffers(), *k_norm.buffers()]


def _left_out(attention: Attention) -> str:
    rate = attention.attn_drop.p
    return f"without its attn_drop {rate}" if rate else ""


def _tied_norm(q_norm: nn.Module, k_norm: nn.Module) -> nn.Module:
    norm = copy.deepcopy(k_norm)
    with torch.no_grad():
        for own, of_queries in zip(norm.parameters(), q_norm.parameters(), strict=True):
            own.copy_(tied(of_queries, own))
    return norm
