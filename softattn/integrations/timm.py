"""Softmax-free attention in the vision transformers of timm."""

import copy
from collections.abc import Callable, Collection

import torch
from einops import rearrange
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from softattn.attention import softmax_free_attention
from softattn.common.validation import IMPLEMENTATIONS, NORMALIZATIONS, check_causal, check_choice
from softattn.integrations.swap import SwapReport, linear_of, tied
from softattn.landmarks import AvgPoolLandmarks, LandmarkSampler
from softattn.landmarks.sampler import pool_landmarks
from softattn.pinv import resolve_pinv


class PatchGrid:
    """The grid of the image that a model is looking at: a forward hook of its patch embedding.

    Args:
        model: whose images they are.
    """

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model
        self.sizes: tuple[int, int] = model.patch_embed.grid_size
        self._checkpointed: tuple[int, int] | None = None

    def __call__(self, patch_embed: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Notes the grid that ``patch_embed`` makes of the image, which may be of any size.

        Raises:
            ValueError: the size changes under activation checkpointing, whose backward pass would
                compute an earlier image again by the grid of the last.
        """
        height, width = args[0].shape[-2:]
        self.sizes = patch_embed.dynamic_feat_size((height, width))  # type: ignore[operator]
        if self.model.grad_checkpointing and torch.is_grad_enabled():
            if self._checkpointed not in (None, self.sizes):
                raise ValueError(
                    "under activation checkpointing all images must have one size: their grid was "
                    f"{self._checkpointed} and is {self.sizes}; use set_grad_checkpointing(False)"
                )
            self._checkpointed = self.sizes


class SoftmaxFreeViTAttention(nn.Module):
    """Softmax-free self-attention in place of the ``Attention`` of a timm vision transformer.

    ``qk_proj``, ``qk_norm`` and ``v_proj`` stand for its ``qkv``, ``q_norm`` and ``k_norm``; what
    follows the attention (scale norm, gate, ``proj``, ``proj_drop``) is taken over as it is.

    Args:
        softmax: the attention whose place it takes.
        grid: of the image's patches.
        num_prefix_tokens: class and register tokens before them, which are queries and keys but
            have no part in the landmarks.
        landmarks: a ``LandmarkSampler``.
        normalization: see ``softmax_free_attention``.
        pinv: see there.
        impl: see there.
    """

    def __init__(
        self,
        softmax: Attention,
        grid: PatchGrid,
        num_prefix_tokens: int,
        *,
        landmarks: LandmarkSampler,
        normalization: str,
        pinv: str | Callable[[Tensor], Tensor] | None,
        impl: str,
    ) -> None:
        super().__init__()
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("impl", impl, IMPLEMENTATIONS)
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
        self.landmarks = landmarks
        self.pinv = resolve_pinv(pinv, impl)
        self.norm = softmax.norm
        self.gate = getattr(softmax, "gate", None)  # of later versions of timm
        self.proj = softmax.proj
        self.proj_drop = softmax.proj_drop
        self.train(softmax.training)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attends from all tokens (batch, n, dim) to all.

        Raises:
            ValueError: there is a mask, or the tokens are not those of the image's grid.
        """
        check_causal(is_causal)
        if attn_mask is not None:
            raise ValueError(
                "attn_mask says of every pair of tokens whether it counts, and landmarks, which "
                "stand for many tokens, know no pairs; leave it out"
            )
        keys = self.qk_norm(self._heads(self.qk_proj(x)))
        landmarks, _ = pool_landmarks(
            self.landmarks, keys, grid=self.grid.sizes, num_prefix_tokens=self.num_prefix_tokens
        )
        attended = softmax_free_attention(
            keys,
            None,
            self._heads(self.v_proj(x)),
            landmarks,
            normalization=self.normalization,
            pinv=self.pinv,
            scale=self.scale,
            impl=self.impl,
        )
        answer: Tensor = self.norm(rearrange(attended, "b h n d -> b n (h d)"))
        if self.gate is not None:
            answer = answer * self.gate(x).sigmoid()
        answer = self.proj_drop(self.proj(answer))
        return answer

    def extra_repr(self) -> str:
        """Sizes and choices."""
        return (
            f"num_heads={self.num_heads}, num_prefix_tokens={self.num_prefix_tokens}, "
            f"normalization={self.normalization!r}, impl={self.impl!r}"
        )

    def _heads(self, tokens: Tensor) -> Tensor:
        return rearrange(tokens, "b n (h d) -> b h n d", h=self.num_heads)


def swap_attention(
    model: VisionTransformer,
    *,
    blocks: Collection[int] | None = None,
    landmarks: LandmarkSampler | None = None,
    normalization: str = "token",
    pinv: str | Callable[[Tensor], Tensor] | None = None,
    impl: str = "auto",
) -> SwapReport:
    """Puts softmax-free attention in the blocks of a timm vision transformer.

    Class and register tokens stand before the grid, and the grid is that of each image, so models
    with ``dynamic_img_size`` take images of any size. All parameters are carried over, but queries
    and keys are tied: they share the mean of their projections and of their norms. The model
    therefore needs training, unless these were equal already.

    Args:
        model: a ``VisionTransformer`` of timm, changed in place.
        blocks: indices of the blocks to change, all of them by default.
        landmarks: a ``LandmarkSampler`` of which each attention gets its own copy;
            ``AvgPoolLandmarks(49)`` by default.
        normalization: see ``softmax_free_attention``; ``"token"`` stands in for softmax.
        pinv: see there.
        impl: see there.

    Returns:
        What was swapped and what was left alone.

    Raises:
        TypeError: the model is no ``VisionTransformer``, or its patch embedding tells no grid, or
            ``landmarks`` is no sampler.
        ValueError: there is no such block, nothing to swap, or the model drops patches.

    Examples:
        >>> model = timm.create_model("vit_tiny_patch16_224")
        >>> print(swap_attention(model, landmarks=AvgPoolLandmarks(49)))
    """
    _check(model, landmarks)
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
            left_alone[name] = f"{type(block).__name__} holds no timm.layers.Attention"
        for path, attention in found.items():
            if _alike(attention.q_norm, attention.k_norm):
                to_swap[path] = attention
            else:
                left_alone[path] = "q_norm and k_norm are not of one kind, and cannot be tied"
    if model.attn_pool is not None:
        left_alone["attn_pool"] = "it pools tokens, and is no self-attention"
    prefix = model.num_prefix_tokens
    report = SwapReport(
        {path: _left_out(attention) for path, attention in to_swap.items()},
        left_alone,
        (
            f"grid of the image, by default {model.patch_embed.grid_size}",
            f"prefix tokens (class and registers) before it: {prefix}",
            "queries and keys share the mean of their projections and norms",
        ),
    )
    if not to_swap:
        raise ValueError(f"the model has no attention to swap: {report}")
    grid = PatchGrid(model)
    for path, attention in to_swap.items():
        made = SoftmaxFreeViTAttention(
            attention,
            grid,
            prefix,
            landmarks=AvgPoolLandmarks() if landmarks is None else copy.deepcopy(landmarks),
            normalization=normalization,
            pinv=pinv,
            impl=impl,
        )
        model.set_submodule(path, made)
    model.patch_embed.register_forward_hook(grid)
    return report


def _check(model: VisionTransformer, landmarks: LandmarkSampler | None) -> None:
    if not isinstance(model, VisionTransformer):
        raise TypeError(
            f"model must be a timm VisionTransformer, got {type(model).__name__}, whose grid and "
            "prefix tokens are not known here; put softattn.SoftmaxFreeAttention in it by hand"
        )
    if landmarks is not None and not isinstance(landmarks, LandmarkSampler):
        raise TypeError(
            "landmarks must be a LandmarkSampler such as softattn.AvgPoolLandmarks(49), got "
            f"{landmarks!r}"
        )
    if not hasattr(model.patch_embed, "dynamic_feat_size"):
        raise TypeError(
            "the model's patch_embed must have timm's dynamic_feat_size, which tells the grid of "
            f"an image, got {type(model.patch_embed).__name__}"
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise ValueError(
            "the model drops patches in training, and what is left is no grid; make it with "
            "patch_drop_rate=0"
        )


def _alike(q_norm: nn.Module, k_norm: nn.Module) -> bool:
    """Whether the norms compute the same but for their parameters, and hold no statistics."""
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
