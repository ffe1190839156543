"""The problem of segmentation: ADE20K's samples, transformers' losses, intersection over union."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.scheduler import PolyLRScheduler
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from examples.dense.pictures import palette
from examples.dense.problem import Data, Problem
from examples.dense.recipe import Recipe
from examples.dense.samples import Truth
from examples.segmentation.ade import IGNORED, has_labels, open_data
from examples.segmentation.models import create_model
from examples.training.errors import InputError
from examples.training.history import Panel
from examples.training.screen import Screen

MEAN, STD = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
TRIES = 10  # random crops, until one has a pixel with a class
LONGEST = 4  # side in evaluation, as a multiple of the shorter one


@dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """How a segmenter is trained.

    Args:
        model: its name, as for ``create_model``.
        image_size: height and width of the crops of training, and the shorter side in evaluation.
        scale: smallest and largest shorter side before a crop, as a multiple of ``image_size``.
    """

    model: str = "upernet_soft_norm_small"
    epochs: int = 127
    lr: float = 6e-5
    weight_decay: float = 0.01
    warmup_lr: float = 6e-11
    warmup_updates: int = 1500
    image_size: int = 512
    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("image_size", lambda value: value >= 1, "at least 1")
        # Batch norm over pooled maps needs two images.
        self.require("batch_size", lambda value: value >= 2, "at least 2")


class Segmentation(Problem[SegmentationRecipe]):
    """UperNet."""

    room = "segmentation"
    recipe = SegmentationRecipe
    score = "miou"
    panels = (
        Panel("cross-entropy in nats", {"train_loss": "training"}),
        Panel(
            "score on the validation images",
            {"miou": "mean IoU", "pixel_accuracy": "pixels"},
            percent=True,
        ),
    )

    def open(self, folder: Path, model: str, screen: Screen) -> Data:
        """The layout of ADE20K; see ``ade.open_data``."""
        return open_data(folder, screen)

    def create(self, name: str, **options: Any) -> Any:
        """See ``models.create_model``."""
        return create_model(name, **options)

    def preparation(self, recipe: SegmentationRecipe) -> dict[str, Any]:
        """The shorter side of an image."""
        return {"image_size": recipe.image_size}

    def schedule(
        self, recipe: SegmentationRecipe, optimizer: Optimizer, updates_per_epoch: int
    ) -> PolyLRScheduler:
        """A warm-up, then a straight line to 0."""
        return PolyLRScheduler(
            optimizer,
            recipe.epochs * updates_per_epoch,
            power=1,
            warmup_t=recipe.warmup_updates,
            warmup_lr_init=recipe.warmup_lr,
            t_in_epochs=False,
        )

    def augment(
        self, recipe: SegmentationRecipe, image: Tensor, truth: Truth
    ) -> tuple[Tensor, Truth]:
        """Resizes, cuts, flips and colours at random, and normalises."""
        sides = [round(factor * recipe.image_size) for factor in recipe.scale]
        cut = v2.Compose(
            [
                v2.RandomResize(sides[0], sides[1] + 1),
                v2.RandomCrop(
                    recipe.image_size,
                    pad_if_needed=True,
                    fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED},
                ),
            ]
        )
        change = v2.Compose(
            [
                v2.RandomHorizontalFlip(recipe.horizontal_flip),
                v2.RandomPhotometricDistort(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        whole = tv_tensors.Image(image), truth
        for _ in range(TRIES):
            image, truth = cut(*whole)
            if has_labels(truth["labels"]):
                break
        augmented: tuple[Tensor, Truth] = change(image, truth)
        return augmented

    def loss(
        self, network: nn.Module, model: Any, images: list[Tensor], truths: list[Truth]
    ) -> Tensor:
        """The cross-entropy of the head and, at 0.4 of its weight, of the auxiliary head.

        Raises:
            InputError: no pixel has a class.
        """
        labels = torch.stack([truth["labels"] for truth in truths]).long()
        if not has_labels(labels):
            raise InputError(
                f"no pixel of {len(labels)} crops of a batch has a class; use a larger batch_size "
                "or image_size, or leave out images whose maps have few classes"
            )
        loss: Tensor = network(torch.stack(images), labels).loss
        return loss

    def predict(self, model: Any, image: Tensor, preparation: dict[str, Any]) -> Truth:
        """The class of each pixel."""
        height, width = image.shape[1:]
        side = preparation["image_size"]
        resized = F.resize(image, [side], max_size=LONGEST * side)
        logits = model(F.normalize(resized, MEAN, STD)[None]).logits.float()
        logits = interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return {"labels": logits[0].argmax(0).to(torch.uint8)}

    def meter(self, model: Any, classes: int) -> "Overlap":
        """Mean intersection over union, and the share of right pixels."""
        return Overlap(classes)

    def draw(self, image: Tensor, found: Truth, classes: Sequence[str]) -> Tensor:
        """Each class in its own colour."""
        masks = torch.stack([found["labels"] == label for label in range(len(classes))])
        return draw_segmentation_masks(image, masks, alpha=0.6, colors=palette(len(classes)))


class Overlap:
    """Mean intersection over union of the classes that occur, and the share of right pixels.

    Args:
        classes: number of them.
    """

    def __init__(self, classes: int) -> None:
        self.metric = MulticlassJaccardIndex(classes, ignore_index=IGNORED, sync_on_compute=False)

    def update(self, found: Truth, truth: Truth) -> None:
        """Adds an image."""
        self.metric.update(found["labels"][None], truth["labels"][None])

    def compute(self) -> dict[str, float]:
        """Both scores; pixels without a class do not count."""
        counts = torch.stack(gather_object([self.metric.confmat])).sum(0)
        self.metric.confmat = counts
        return {
            "miou": float(self.metric.compute()),
            "pixel_accuracy": float(counts.trace() / counts.sum()),
        }
