"""Segmenters by name: ``create_model("upernet_soft_norm_small")``, and so on."""

import inspect
from dataclasses import field
from typing import Any

from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoConfig,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from examples.dense.backbone import attention_options, backbone_of, freeze_stages, split_name
from examples.models.registry import MODELS


class FeaturesConfig(TimmBackboneConfig):
    """A backbone of timm with its options, which ``TimmBackboneConfig`` has no place for.

    options: of ``timm.create_model``.
    """

    model_type = "timm_backbone_with_options"

    options: dict[str, Any] = field(default_factory=dict)


class Features(TimmBackbone):
    """A backbone of timm, made with its options."""

    config: FeaturesConfig

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__(config, **config.options)


AutoConfig.register(FeaturesConfig.model_type, FeaturesConfig)
AutoBackbone.register(FeaturesConfig, Features)


class UperNet(UperNetForSemanticSegmentation):
    """transformers' UperNet, with errors that name what is wrong."""

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any
    ) -> SemanticSegmenterOutput:
        """As transformers'.

        Args:
            pixel_values: images (batch, 3, height, width), normalised.
            labels: (batch, height, width), classes from 0; 255 is ignored.
            options: of transformers' class.

        Returns:
            ``logits`` (batch, classes, height, width), and ``loss`` if there are labels.

        Raises:
            ValueError: images or labels that the segmenter cannot work with.
        """
        self._check(pixel_values, labels)
        return super().forward(pixel_values, labels=labels, **options)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass computes blocks again instead of storing their activations."""
        backbone_of(self).set_grad_checkpointing(enable)

    def _check(self, images: Tensor, labels: Tensor | None) -> None:
        batch, _, height, width = images.shape
        config: Any = self.config
        soft = config.backbone_config.backbone in MODELS
        landmarks = config.backbone_config.options.get("landmarks", "conv")
        if soft and landmarks == "conv" and min(height, width) < 29:
            raise ValueError(
                'the published landmarks, "conv", need images of at least 29 × 29 pixels, got '
                f'{height} × {width}; "avg" and "conv_pad" take any'
            )
        if self.training and batch == 1:
            raise ValueError(
                "a batch has one image, and the batch norm over its pooled map needs two in "
                "training; use a larger batch_size, or eval()"
            )
        if labels is None:
            return
        if labels.shape != (batch, height, width):
            raise ValueError(
                f"labels must be (batch, height, width) = {(batch, height, width)} as the images, "
                f"got {tuple(labels.shape)}"
            )
        ignored = config.loss_ignore_index
        used = labels[labels != ignored]
        if not len(used):
            raise ValueError(f"all labels are {ignored}, which is ignored, so there is no loss")
        lowest, highest = int(used.min()), int(used.max())
        if lowest < 0 or highest >= config.num_labels:
            raise ValueError(
                f"labels must be from 0 to {config.num_labels - 1}, or {ignored} where they "
                f"are ignored, got {lowest if lowest < 0 else highest}"
            )


def create_model(
    name: str,
    *,
    num_classes: int = 150,
    published: bool = False,
    backbone_options: dict[str, Any] | None = None,
    frozen_stages: int = 0,
    **options: Any,
) -> UperNet:
    """A segmenter with random weights.

    Args:
        name: ``"upernet_"``, then a backbone of ``examples.models``, such as ``"soft_norm_small"``,
            or ``"softmax_small"``, its twin.
        num_classes: number of classes.
        published: whether attention is as published, which the authors' weights need. Its landmarks
            and its cost for each token grow with the image. By default there are 49 landmarks.
        backbone_options: of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}``.
        frozen_stages: number of stages of the backbone that training does not change.
        options: of transformers' ``UperNetConfig``, such as ``hidden_size=512``.

    Raises:
        ValueError: an unknown name, or a number out of its range.
        TypeError: an unknown option.
    """
    _, backbone = split_name(name, ["upernet"])
    # The config would store a misspelt option as an attribute that nothing reads.
    known = inspect.signature(UperNetConfig).parameters
    if unknown := sorted(options.keys() - known):
        raise TypeError(
            f"{', '.join(unknown)}: no option of create_model or of transformers' UperNetConfig, "
            f"which has {', '.join(sorted(known))}"
        )
    features: dict[str, Any] = {
        "backbone": backbone,
        "out_indices": [0, 1, 2, 3],
        "options": attention_options(backbone, published, backbone_options),
    }
    options |= {"backbone_config": FeaturesConfig(**features), "num_labels": num_classes}
    model = UperNet(UperNetConfig(**options))
    freeze_stages(model, frozen_stages)
    return model
