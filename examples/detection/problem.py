"""The problem of detection: COCO's samples, torchvision's losses, average precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from matplotlib.font_manager import findfont
from timm.scheduler import MultiStepLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from examples.dense.pictures import palette
from examples.dense.problem import Data, Problem
from examples.dense.recipe import Recipe
from examples.dense.samples import Truth
from examples.detection.coco import open_data
from examples.detection.models import MaskRCNN, create_model
from examples.training.history import Panel
from examples.training.screen import Screen

MASK_THRESHOLD = 0.5  # of the values of predicted masks


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """How a detector is trained.

    Args:
        model: its name, as for ``create_model``.
        steps: epochs after which the learning rate is divided by 10.
    """

    model: str = "mask_rcnn_soft_norm_tiny"
    steps: tuple[int, ...] = (8, 11)


class Detection(Problem[DetectionRecipe]):
    """RetinaNet and Mask R-CNN.

    Args:
        shown_score: lowest score of the objects that pictures show.
    """

    room = "detection"
    recipe = DetectionRecipe
    score = "box_ap"
    panels = (
        Panel("loss", {"train_loss": "training"}),
        Panel("precision of boxes", {"box_ap": "AP", "box_ap50": "AP50"}, percent=True),
    )

    def __init__(self, shown_score: float = 0.5) -> None:
        self.shown_score = shown_score

    def open(self, folder: Path, model: str, screen: Screen) -> Data:
        """The layout of COCO; see ``coco.open_data``."""
        return open_data(folder, model.startswith("mask_rcnn"), screen)

    def create(self, name: str, **options: Any) -> Any:
        """See ``models.create_model``."""
        return create_model(name, **options)

    def preparation(self, recipe: DetectionRecipe) -> dict[str, Any]:
        """None: torchvision's detectors prepare images themselves."""
        return {}

    def schedule(
        self, recipe: DetectionRecipe, optimizer: Optimizer, updates_per_epoch: int
    ) -> MultiStepLRScheduler:
        """A warm-up, then steps by a factor of 10."""
        return MultiStepLRScheduler(
            optimizer,
            # The scheduler looks one update ahead.
            [step * updates_per_epoch + 1 for step in recipe.steps],
            decay_rate=0.1,
            warmup_t=recipe.warmup_updates,
            warmup_lr_init=recipe.warmup_lr,
            warmup_prefix=False,
            t_in_epochs=False,
        )

    def augment(self, recipe: DetectionRecipe, image: Tensor, truth: Truth) -> tuple[Tensor, Truth]:
        """Flips at random; leaves crowds out. The detector resizes."""
        single = truth["iscrowd"] == 0
        kept = {name: tv_tensors.wrap(value[single], like=value) for name, value in truth.items()}
        augmented: tuple[Tensor, Truth] = v2.Compose(
            [v2.RandomHorizontalFlip(recipe.horizontal_flip), v2.ToDtype(torch.float32, scale=True)]
        )(tv_tensors.Image(image), kept)
        return augmented

    def loss(
        self, network: nn.Module, model: Any, images: list[Tensor], truths: list[Truth]
    ) -> Tensor:
        """The sum of torchvision's losses."""
        targets = [{**truth, "labels": truth["labels"] + model.first_label} for truth in truths]
        losses: dict[str, Tensor] = network(images, targets)
        return torch.stack(list(losses.values())).sum()

    def predict(self, model: Any, image: Tensor, preparation: dict[str, Any]) -> Truth:
        """Boxes, labels from 0, scores and perhaps masks, from the best score to the worst."""
        (found,) = model([image])
        found["labels"] = found["labels"] - model.first_label
        if "masks" in found:
            found["masks"] = (found["masks"][:, 0] > MASK_THRESHOLD).to(torch.uint8)
        return found

    def meter(self, model: Any, classes: int) -> "Precision":
        """COCO's average precision."""
        return Precision(isinstance(model, MaskRCNN))

    def draw(self, image: Tensor, found: Truth, classes: Sequence[str]) -> Tensor:
        """Boxes with names and scores, and masks."""
        colours = palette(len(classes))
        scores = found.get("scores", torch.ones(len(found["labels"])))
        shown = scores >= self.shown_score
        labels = found["labels"][shown].tolist()
        if not labels:
            return image
        chosen = [colours[label] for label in labels]
        texts = [
            classes[label] + (f" {score:.2f}" if "scores" in found else "")
            for label, score in zip(labels, scores[shown].tolist(), strict=True)
        ]
        if "masks" in found:
            masks = found["masks"][shown].bool()
            image = draw_segmentation_masks(image, masks, alpha=0.5, colors=chosen)
        return draw_bounding_boxes(
            image,
            found["boxes"][shown],
            texts,
            colors=chosen,
            width=1 + image.shape[1] // 400,
            font=findfont("DejaVu Sans"),
            font_size=10 + image.shape[1] // 100,
            label_colors="black",
            label_background_colors=chosen,
            fill_labels=True,
        )


class Precision:
    """Average precision of boxes, and of masks, as COCO defines it.

    Args:
        masks: whether there are masks.
    """

    def __init__(self, masks: bool) -> None:
        self.kinds: dict[Literal["bbox", "segm"], str] = {"bbox": "box"}
        if masks:
            self.kinds["segm"] = "mask"
        self.metric = MeanAveragePrecision(
            iou_type=tuple(self.kinds), backend="faster_coco_eval", sync_on_compute=False
        )
        self.metric.warn_on_many_detections = False

    def update(self, found: Truth, truth: Truth) -> None:
        """Adds an image."""
        self.metric.update([found], [truth])

    def compute(self) -> dict[str, float]:
        """AP over IoU from 0.5 to 0.95, at 0.5 and at 0.75, and of three sizes of objects."""
        # torchmetrics' own gathering needs as many images in each process.
        for name, local in self.metric.metric_state.items():
            setattr(self.metric, name, gather_object(local))
        scores = self.metric.compute()
        named = {"": "map", "50": "map_50", "75": "map_75"}
        named |= {f"_{size}": f"map_{size}" for size in ("small", "medium", "large")}
        return {
            f"{kind}_ap{suffix}": float(scores[f"{prefix}_{name}" if len(self.kinds) > 1 else name])
            for prefix, kind in self.kinds.items()
            for suffix, name in named.items()
        }
