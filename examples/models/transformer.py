"""SOFT, a pyramid of softmax-free transformer blocks, with the interface of a timm model."""

from collections.abc import Callable, Sequence
from itertools import count, islice

from einops import rearrange
from timm.layers import LayerNorm, global_pool_nlc, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from examples.imagenet.blocks import MLP_RATIO, SoftmaxFreeBlock, downsample, sampler, stem
from examples.imagenet.stages import ClassTokenStage, Stage

HEAD_DIM = 32
REDUCTIONS = (4, 8, 16, 32)
GRIDS = tuple(224 // reduction for reduction in REDUCTIONS)
LANDMARK_STRIDES = (8, 4, 2)
VALUE_CONVS = (9, 5, 3)

# What the authors' checkpoints were trained with.
PUBLISHED_PINV = {"none": "soft", "landmark": "soft_norm_official"}


class SoftmaxFreeTransformer(nn.Module):
    """SOFT (NeurIPS 2021; IJCV 2024): three softmax-free stages, then softmax over a 1/32 map.

    The defaults are the published arithmetic. Images have any height and width from 29 pixels, or
    from 1 with the landmarks ``"conv_pad"`` and ``"avg"``.

    Args:
        in_chans: channels of an image.
        num_classes: of the classifier; 0 for none.
        global_pool: ``"token"`` for the class token, ``"avg"`` or another of timm's, or ``""``.
        embed_dims: features of a token in each stage, multiples of 32, the size of a head.
        depths: blocks in each stage.
        normalization: of ``softattn.SoftmaxFreeAttention``: ``"none"`` in SOFT, ``"landmark"`` in
            its normalised form.
        pinv: of ``softattn.SoftmaxFreeAttention``; by default what the authors' code does, which
            for ``"landmark"`` makes an answer depend on the other images of the batch.
            ``"minimax"`` does not, converges, and takes half the steps.
        landmarks: ``"conv"``, ``"conv_pad"`` or ``"avg"``, see ``blocks.sampler``.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (1, 2, 3, 2),
        normalization: str = "none",
        pinv: str | Callable[[Tensor], Tensor] | None = None,
        landmarks: str = "conv",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{index}"}
            for index, (dim, reduction) in enumerate(zip(embed_dims, REDUCTIONS, strict=True))
        ]

        patch_embeds = [stem(in_chans, embed_dims[0]), *map(downsample, embed_dims, embed_dims[1:])]
        num_heads = [dim // HEAD_DIM for dim in embed_dims]
        drop_paths = _drop_path_rates(drop_path_rate, depths)
        stages: list[Stage] = []
        for stage in range(3):
            softmax_free_blocks = [
                SoftmaxFreeBlock(
                    embed_dims[stage],
                    num_heads[stage],
                    landmarks=sampler(landmarks, HEAD_DIM, LANDMARK_STRIDES[stage]),
                    value_conv=VALUE_CONVS[stage],
                    normalization=normalization,
                    pinv=PUBLISHED_PINV.get(normalization) if pinv is None else pinv,
                    drop_path=drop_path,
                )
                for drop_path in drop_paths[stage]
            ]
            stages.append(
                Stage(embed_dims[stage], GRIDS[stage], patch_embeds[stage], softmax_free_blocks)
            )
        softmax_blocks = [
            Block(
                embed_dims[3],
                num_heads[3],
                MLP_RATIO,
                qkv_bias=True,
                drop_path=drop_path,
                norm_layer=LayerNorm,
            )
            for drop_path in drop_paths[3]
        ]
        stages.append(ClassTokenStage(embed_dims[3], GRIDS[3], patch_embeds[3], softmax_blocks))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = self._classifier()
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, in_chans, height, width) to logits (batch, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the class token and those of the 1/32 map: (batch, 1 + n, num_features)."""
        x = self.stages(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` returns, pooled, and classified but for ``pre_logits``."""
        x = global_pool_nlc(x, self.global_pool, num_prefix_tokens=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after the stages, as ``features_only`` asks for them.

        Args:
            x: images (batch, in_chans, height, width).
            indices: of the stages; the last ones for an int, all by default.
            norm: whether the final norm is applied to the last map.
            stop_early: whether to leave out the stages after the last index.
            output_fmt: ``"NCHW"`` alone.
            intermediates_only: whether to leave out the first result.

        Returns:
            What ``forward_features`` does, and a list of (batch, dim, ⌈height/r⌉, ⌈width/r⌉), r the
            stage's reduction 4, 8, 16 or 32. After ``stop_early`` the first is the last map.

        Raises:
            ValueError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt must be "NCHW", got {output_fmt!r}')
        taken, last = feature_take_indices(len(self.stages), indices)
        height = -(-x.shape[-2] // REDUCTIONS[-1])
        outputs = []
        for stage in self.stages[: last + 1] if stop_early else self.stages:
            x = stage(x)
            outputs.append(x)
        if len(outputs) == len(REDUCTIONS):
            tokens, x = x, self.norm(x)
            tokens = x if norm else tokens
            outputs[-1] = rearrange(tokens[:, 1:], "b (h w) c -> b c h w", h=height)
        maps = [outputs[index] for index in taken]
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops what the maps after the stages ``indices`` do not need; returns their indices."""
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
        """A fresh classifier, and another pooling where one is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        weight = next(self.parameters())
        self.head = self._classifier().to(weight.device, weight.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether a backward pass computes blocks again instead of keeping what is in them."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name.endswith(("pos_embed", "cls_token"))}

    def _classifier(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        classifier = nn.Linear(self.num_features, self.num_classes)
        init_weights(classifier)
        return classifier


def _drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Of each block of each stage: 0 at the first, ``last`` at the last, linear in between."""
    rates = (last * block / max(sum(depths) - 1, 1) for block in count())
    return [list(islice(rates, depth)) for depth in depths]


def init_weights(module: nn.Module) -> None:
    """The published initialisation of linear layers."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
