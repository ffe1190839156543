"""The recipe of a training: everything that decides its result, except the images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from examples.training.errors import InputError

_BOUNDS: list[tuple[str, Callable[[float], bool], str]] = [
    ("image_size epochs batch_size accumulate", lambda value: value >= 1, "at least 1"),
    ("lr clip_grad", lambda value: value > 0, "above 0"),
    (
        "min_lr warmup_lr weight_decay mixup cutmix color_jitter",
        lambda value: value >= 0,
        "0 or more",
    ),
    ("horizontal_flip vertical_flip random_erasing", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("drop_path label_smoothing ema_decay", lambda value: 0 <= value < 1, "0 or more and below 1"),
]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are those of the published recipe.

    Args:
        model: name of a timm model, one of ours or any other.
        model_options: of ``timm.create_model``, such as ``pinv: minimax``.
        image_size: height and width of the images.
        epochs: number of passes over the training images.
        batch_size: images of one process in one forward pass; the published recipe had 8 GPUs.
        accumulate: forward passes of each process before an update. An update then uses
            ``batch_size`` · ``accumulate`` · processes images.
        lr: learning rate of AdamW after the warm-up; a cosine lowers it to ``min_lr``.
        min_lr: learning rate at the end.
        warmup_lr: learning rate of the first update.
        warmup_epochs: number of epochs of linear warm-up, out of ``epochs``.
        weight_decay: of matrices and convolutions. Norms, biases and embeddings have none.
        clip_grad: largest norm of the gradient.
        drop_path: probability of skipping the last residual branch; it grows linearly with depth.
        label_smoothing: share of a label that is spread over all classes.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none. One of the two is drawn for each batch.
        auto_augment: a policy of timm; null for none.
        random_erasing: probability of replacing a patch of an image by noise.
        color_jitter: of brightness, contrast and saturation, if no policy is given.
        crop_scale: smallest and largest share of an image's area in a random crop.
        horizontal_flip: its probability.
        vertical_flip: its probability.
        ema_decay: of the moving average of the weights, which is then evaluated; null for none.
        seed: of everything random.

    Raises:
        InputError: a number is out of its range, or numbers contradict each other.
    """

    model: str = "soft_tiny"
    model_options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    epochs: int = 300
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    min_lr: float = 5e-5
    warmup_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    color_jitter: float = 0.4
    crop_scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    ema_decay: float | None = 0.99996
    seed: int = 42

    def __post_init__(self) -> None:
        for names, fits, expected in _BOUNDS:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise InputError(f"{name} must be {expected}, got {value}")
        foreign = self.model_options.keys() & {"num_classes", "drop_path_rate"}
        if foreign:
            raise InputError(
                f"model_options must not have {', '.join(sorted(foreign))}: num_classes follows "
                "from the images, and drop_path is an option of the recipe"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise InputError(
                f"warmup_epochs={self.warmup_epochs} must be from 0 to epochs - 1 = "
                f"{self.epochs - 1}, so that the warm-up ends before the training"
            )
        if self.mixes and self.batch_size % 2:
            raise InputError(
                f"mixup and cutmix mix pairs, so batch_size must be even, got {self.batch_size}; "
                "mixup=0 and cutmix=0 turn them off"
            )

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed."""
        return self.mixup > 0 or self.cutmix > 0
