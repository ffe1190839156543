"""SOFT, a pyramid of softmax-free transformer blocks, with the interface of a timm model."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import (
    Format,
    LayerNorm,
    calculate_drop_path_rates,
    global_pool_nlc,
    nchw_to,
    to_2tuple,
    trunc_normal_,
)
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from examples.models.blocks import PostNormBlock, downsample, sampler, stem
from examples.models.stages import ClassTokenStage, Grid, Stage, join_tokens, split_tokens
from softattn import SoftmaxFreeAttention

HEAD_DIM = 32
MLP_RATIO = 4.0
REDUCTIONS = (4, 8, 16, 32)
LANDMARK_STRIDES = (8, 4, 2)
VALUE_CONVS = (9, 5, 3)

# The inverses that the authors' checkpoints were trained with.
PUBLISHED_PINV = {"none": "soft", "landmark": "soft_norm_official"}


# (stage, dim, num_heads) to a module on maps (batch, height, width, dim), for stages 0, 1 and 2.
MakeAttention = Callable[[int, int, int], nn.Module]


class PyramidTransformer(nn.Module):
    """Three stages of one kind of attention, then softmax attention over a map at stride 32.

    The model accepts images of any height and width that its attention accepts.

    Args:
        make_attention: of the first three stages.
        mlp_ratio: hidden features of the MLPs of these stages, as a multiple of their features.
        img_size: height and width, or an int for both, that position embeddings are made for. They
            are resized for images of another size.
        in_chans: channels of an image.
        num_classes: of the classifier; 0 for none.
        global_pool: ``"token"`` for the class token, ``"avg"`` or another of timm's, or ``""``.
        embed_dims: features of a token in each stage, multiples of 32, the size of a head.
        depths: number of blocks in each stage.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after each attention and in each MLP.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        make_attention: MakeAttention,
        mlp_ratio: float,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (1, 2, 3, 2),
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{index}"}
            for index, (dim, reduction) in enumerate(zip(embed_dims, REDUCTIONS, strict=True))
        ]

        patch_embeds = [
            stem(in_chans, embed_dims[0], **factory),
            *(downsample(*dims, **factory) for dims in pairwise(embed_dims)),
        ]
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.stages = nn.Sequential()
        for stage, (dim, grid) in enumerate(zip(embed_dims, _grids(img_size), strict=True)):
            heads, options = dim // HEAD_DIM, {"proj_drop": proj_drop_rate, **factory}
            blocks: list[nn.Module] = [
                PostNormBlock(
                    dim, make_attention(stage, dim, heads), mlp_ratio, drop_path=rate, **options
                )
                if stage < 3
                else Block(
                    dim, heads, qkv_bias=True, norm_layer=LayerNorm, drop_path=rate, **options
                )
                for rate in drop_paths[stage]
            ]
            make_stage = Stage if stage < 3 else ClassTokenStage
            self.stages.append(make_stage(dim, grid, patch_embeds[stage], blocks, **factory))
        self.norm: nn.Module = LayerNorm(self.num_features, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = self._classifier(**factory)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, in_chans, height, width) to logits (batch, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to a class token and the tokens of the last map: (batch, 1 + n, num_features)."""
        features, class_token = self.stages(x)
        return self.norm(join_tokens(features, class_token))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools the output of ``forward_features`` and classifies it, unless ``pre_logits``."""
        x = global_pool_nlc(x, self.global_pool, num_prefix_tokens=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The outputs of the stages.

        Args:
            x: images (batch, in_chans, height, width).
            indices: of the stages. An int means that many last ones; by default, all.
            return_prefix_tokens: whether to pair each map with its class token.
            norm: whether to apply the final norm to the output of the last stage.
            stop_early: whether to skip the stages after the last index.
            output_fmt: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` or ``"NCL"``.
            intermediates_only: whether to leave out the first result.

        Returns:
            The output of ``forward_features``, and a list of maps. A map is (batch, dim,
            ⌈height/r⌉, ⌈width/r⌉) in the format ``"NCHW"``, where r is 4, 8, 16 or 32. With
            ``return_prefix_tokens`` the list has pairs of a map and (batch, 1, dim); the latter is
            (batch, 0, dim) for the first three stages. Where the last stage does not run, the first
            result is the last map.

        Raises:
            ValueError: an unknown ``output_fmt``.
        """
        if output_fmt not in Format.__members__:
            known = ", ".join(map(repr, Format.__members__))
            raise ValueError(f"output_fmt must be one of {known}, got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.stages), indices)
        outputs: list[tuple[Tensor, Tensor]] = []
        for stage in self.stages[: last + 1] if stop_early else self.stages:
            if isinstance(stage, ClassTokenStage):
                features, class_token = stage(x)
                x = self.norm(join_tokens(features, class_token))
                if norm:
                    height, width = features.shape[2:]
                    features, class_token = split_tokens(x, (height, width))
                outputs.append((features, class_token))
            else:
                x = stage(x)
                outputs.append((x, x.new_empty(len(x), 0, x.shape[1])))

        features_and_prefixes = [
            (nchw_to(features, Format(output_fmt)), prefix)
            for features, prefix in (outputs[index] for index in taken)
        ]
        intermediates: list[Any] = (
            features_and_prefixes
            if return_prefix_tokens
            else [features for features, _ in features_and_prefixes]
        )
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes what the outputs of the stages ``indices`` do not need; returns their indices."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm or last + 1 < len(REDUCTIONS):
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer, from ``num_features`` to logits."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new one, and the pooling if one is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        weight = next(self.parameters())
        self.head = self._classifier(device=weight.device, dtype=weight.dtype)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resizes the position embeddings for images of another size.

        The output for images of that size stays the same, and needs no resizing any more.

        Args:
            img_size: height and width, or an int for both.
        """
        stages = (module for module in self.modules() if isinstance(module, Stage))
        # Extractors of the first feature maps have fewer stages.
        for stage, grid in zip(stages, _grids(img_size), strict=False):
            stage.set_grid(grid)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass computes blocks again instead of storing their activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name.endswith(("pos_embed", "cls_token"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, as timm's layer-wise decay reads them.

        Args:
            coarse: whether a layer is a stage. By default it is a block; what embeds the tokens of
                a stage belongs to the stage's first block.
        """
        if coarse:
            return {"stem": r"^stages\.0\.patch_embed", "blocks": r"^stages\.(\d+)"}
        return {
            "stem": r"^stages\.0\.(?:patch_embed|pos_embed)",
            "blocks": [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)", (0,)),
                (r"^norm", (99999,)),
            ],
        }

    def _classifier(self, **factory: Any) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        classifier = nn.Linear(self.num_features, self.num_classes, **factory)
        _init_weights(classifier)
        return classifier


class SoftmaxFreeTransformer(PyramidTransformer):
    """SOFT (NeurIPS 2021; IJCV 2024).

    The defaults are the published arithmetic. Images have any height and width from 29 pixels, or
    from 1 with other landmarks than ``"conv"``.

    Args:
        normalization: of ``softattn.SoftmaxFreeAttention``: ``"none"`` in SOFT, ``"landmark"`` in
            SOFT-Norm.
        pinv: of ``softattn.SoftmaxFreeAttention``. By default, the method of the authors' code. For
            ``"landmark"`` that method makes an output depend on the other images of the batch;
            ``"minimax"`` does not, converges, and takes half the steps.
        landmarks: ``"conv"``, ``"conv_pad"``, ``"avg"`` or ``"kmeans"``, see ``blocks.sampler``.
        near_field: of ``softattn.SoftmaxFreeAttention``; above 1 for ``normalization="token"``.
        device: of the parameters.
        dtype: of the parameters.
        options: of ``PyramidTransformer``.
    """

    def __init__(
        self,
        *,
        normalization: str = "none",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        landmarks: str = "conv",
        near_field: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def make_attention(stage: int, dim: int, num_heads: int) -> nn.Module:
            return SoftmaxFreeAttention(
                dim,
                num_heads,
                landmarks=sampler(landmarks, HEAD_DIM, LANDMARK_STRIDES[stage], **factory),
                normalization=normalization,
                pinv=PUBLISHED_PINV.get(normalization) if pinv is None else pinv,
                near_field=near_field,
                value_conv=VALUE_CONVS[stage],
                **factory,
            )

        super().__init__(make_attention, MLP_RATIO, **factory, **options)


def _grids(img_size: int | tuple[int, int]) -> list[Grid]:
    """Height and width of the map of each stage."""
    height, width = to_2tuple(img_size)
    return [(-(-height // reduction), -(-width // reduction)) for reduction in REDUCTIONS]


def _init_weights(module: nn.Module) -> None:
    """The published initialisation of linear layers."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
