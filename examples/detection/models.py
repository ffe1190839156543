"""Detectors by name: ``create_model("retinanet_soft_norm_tiny")``, and so on."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from examples.dense.backbone import attention_options, freeze_stages, split_name

Target = dict[str, Tensor]

ASPECT_RATIOS = (0.5, 1.0, 2.0)
LEVELS = 5
GROUPS = 32  # of channels, in the norms of RetinaNet's head


class Pyramid(nn.Module):
    """The maps of a backbone in a feature pyramid, as torchvision's detectors take them.

    Args:
        features: a backbone of timm with ``features_only=True``.
        channels: of the levels.
        extra: makes the levels after those of the backbone.
    """

    def __init__(self, features: Any, channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.features = features
        self.fpn = FeaturePyramidNetwork(features.feature_info.channels(), channels, extra)
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images (batch, 3, height, width) to maps by level, from the largest to the smallest."""
        maps = self.features(images)
        return self.fpn(OrderedDict((str(level), x) for level, x in enumerate(maps)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass computes blocks again instead of storing their activations."""
        self.features.set_grad_checkpointing(enable)


class RetinaNet(detection.RetinaNet):  # type: ignore[misc]
    """torchvision's RetinaNet, with errors that name what is wrong. Labels count from 0.

    Args:
        features: a backbone with maps at strides 8, 16 and 32.
        num_classes: number of classes of objects.
        channels: of the pyramid and the head.
        smallest_anchor: side of the smallest anchors in pixels; it doubles from level to level.
        head_norm: whether each convolution of the head has a group norm, as in the second version
            of torchvision's RetinaNet. The published one has none.
        options: of torchvision's class.
    """

    first_label = 0
    stages = (1, 2, 3)

    def __init__(
        self,
        features: Any,
        num_classes: int,
        channels: int,
        smallest_anchor: int,
        *,
        head_norm: bool = False,
        **options: Any,
    ) -> None:
        sides = [smallest_anchor * 2**level for level in range(LEVELS)]
        octaves = tuple(tuple(int(side * 2 ** (third / 3)) for third in range(3)) for side in sides)
        anchors = AnchorGenerator(octaves, (ASPECT_RATIOS,) * LEVELS)
        norm = partial(nn.GroupNorm, GROUPS) if head_norm else None
        extra = LastLevelP6P7(features.feature_info.channels()[-1], channels)
        super().__init__(
            Pyramid(features, channels, extra),
            num_classes,
            anchor_generator=anchors,
            head=RetinaNetHead(
                channels, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm
            ),
            **options,
        )
        self.num_classes = num_classes
        self.head.register_forward_hook(in_float32)

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """As torchvision's.

        Args:
            images: (3, height, width) each, with values from 0 to 1.
            targets: of each image in training, ``boxes`` (objects, 4), as left, top, right, bottom
                in pixels, and ``labels`` (objects,).

        Returns:
            In training the losses by name; else ``boxes``, ``scores`` and ``labels`` of each image.

        Raises:
            ValueError: an image or a target that the detector cannot work with.
        """
        check(self, images, targets)
        return super().forward(images, targets)


class MaskRCNN(detection.MaskRCNN):  # type: ignore[misc]
    """torchvision's Mask R-CNN, with errors that name what is wrong. Labels count from 1.

    Args:
        features: a backbone with maps at strides 4, 8, 16 and 32.
        num_classes: number of classes of objects, without the background.
        channels: of the pyramid and of the convolutions of the heads; the layers of the box head
            have four times as many.
        smallest_anchor: side of the smallest anchors in pixels; it doubles from level to level.
        options: of torchvision's class.
    """

    first_label = 1
    stages = (0, 1, 2, 3)

    def __init__(
        self,
        features: Any,
        num_classes: int,
        channels: int,
        smallest_anchor: int,
        **options: Any,
    ) -> None:
        sides = tuple((smallest_anchor * 2**level,) for level in range(LEVELS))
        hidden, labels = 4 * channels, num_classes + 1
        # With 256 channels these are torchvision's defaults.
        heads = {
            "box_head": TwoMLPHead(channels * 7**2, hidden),
            "box_predictor": FastRCNNPredictor(hidden, labels),
            "mask_head": MaskRCNNHeads(channels, [channels] * 4, dilation=1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, labels),
        }
        super().__init__(
            Pyramid(features, channels, LastLevelMaxPool()),
            **heads,
            rpn_anchor_generator=AnchorGenerator(sides, (ASPECT_RATIOS,) * LEVELS),
            **options,
        )
        self.num_classes = num_classes
        for part in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            part.register_forward_hook(in_float32)

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """As torchvision's.

        Args:
            images: (3, height, width) each, with values from 0 to 1.
            targets: of each image in training, ``boxes`` (objects, 4), as left, top, right, bottom
                in pixels, ``labels`` (objects,) and ``masks`` (objects, height, width) of 0 and 1.

        Returns:
            In training the losses by name; else ``boxes``, ``scores``, ``labels`` and ``masks``
            (objects, 1, height, width) of each image, masks with values from 0 to 1.

        Raises:
            ValueError: an image or a target that the detector cannot work with.
        """
        check(self, images, targets)
        return super().forward(images, targets)


Detector = RetinaNet | MaskRCNN
HEADS: dict[str, type[Detector]] = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}


def create_model(
    name: str,
    *,
    num_classes: int = 80,
    published: bool = False,
    backbone_options: dict[str, Any] | None = None,
    frozen_stages: int = 0,
    channels: int = 256,
    smallest_anchor: int = 32,
    **options: Any,
) -> Detector:
    """A detector with random weights.

    Args:
        name: ``"retinanet_"`` or ``"mask_rcnn_"``, then a backbone of ``examples.models``, such as
            ``"soft_norm_tiny"``, or ``"softmax_tiny"``, its twin.
        num_classes: number of classes of objects, without a background.
        published: whether attention is as published, which the authors' weights need. Its landmarks
            and its cost for each token grow with the image. By default there are 49 landmarks.
        backbone_options: of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}``.
        frozen_stages: number of stages of the backbone that training does not change.
        channels: of the pyramid and the heads.
        smallest_anchor: side of the smallest anchors in pixels; it doubles from level to level.
        options: of torchvision's ``RetinaNet`` or ``MaskRCNN``, such as ``min_size=800``, and
            ``head_norm`` of ``RetinaNet``.

    Raises:
        ValueError: an unknown name, or a number out of its range.
        TypeError: an unknown option.
    """
    head, backbone = split_name(name, HEADS)
    detector = HEADS[head]
    library_class: Any = detector.__base__
    own = inspect.signature(detector).parameters.values()
    taken = {parameter.name for parameter in own if parameter.kind is not parameter.KEYWORD_ONLY}
    known = set(inspect.signature(library_class).parameters) - taken - {"backbone", "kwargs"}
    known |= {parameter.name for parameter in own} - taken
    known |= {"size_divisible", "fixed_size"}  # of the transform that both pass the rest to
    if unknown := sorted(options.keys() - known):
        raise TypeError(
            f"{', '.join(unknown)}: no option of create_model or of torchvision's "
            f"{detector.__name__}, which has {', '.join(sorted(known))}"
        )
    features = timm.create_model(
        backbone,
        features_only=True,
        out_indices=detector.stages,
        **attention_options(backbone, published, backbone_options),
    )
    model = detector(features, num_classes, channels, smallest_anchor, **options)
    freeze_stages(model, frozen_stages)
    return model


def in_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """A hook that converts the outputs of a head: torchvision computes boxes in their type.

    bfloat16 has 8 significant bits, so that the borders of a box in an image of 1,333 pixels would
    be multiples of 8.
    """
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, Mapping):
        return {name: value.float() for name, value in outputs.items()}
    return tuple(in_float32(module, inputs, part) for part in outputs)


def check(detector: Detector, images: Sequence[Tensor], targets: Sequence[Target] | None) -> None:
    """Raises a ValueError that names the first image or target that cannot be worked with."""
    transform = detector.transform
    for index, image in enumerate(images):
        height, width = image.shape[-2:]
        longest, shortest = max(height, width), min(height, width)
        if shortest < 1 or transform.max_size * shortest < longest:
            raise ValueError(
                f"image {index} has {height} × {width} pixels; reduced to max_size="
                f"{transform.max_size}, a side would have less than one pixel"
            )
    for index, target in enumerate(targets or []):
        boxes, labels = target["boxes"], target["labels"]
        last_label = detector.first_label + detector.num_classes - 1
        outside = labels[(labels < detector.first_label) | (labels > last_label)]
        if len(outside):
            raise ValueError(
                f"labels of target {index} must be from {detector.first_label} to {last_label} for "
                f"{type(detector).__name__} with num_classes={detector.num_classes}, got "
                f"{int(outside[0])}"
            )
        without_area = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)]
        if len(without_area):
            raise ValueError(
                f"boxes of target {index} must be left, top, right, bottom with an area above 0, "
                f"got {without_area[0].tolist()}"
            )
