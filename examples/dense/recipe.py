"""The recipe of a training: everything that decides its result, except the images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from examples.training.errors import InputError

Bounds = list[tuple[str, Callable[[float], bool], str]]


@dataclass(frozen=True)
class Recipe:
    """How a detector or segmenter is trained.

    Args:
        model: its name, as for ``create_model``.
        model_options: of ``create_model``, such as ``frozen_stages: 1``.
        backbone: safetensors file of a classifier, whose weights the backbone starts with.
        epochs: number of passes over the training images.
        batch_size: images of one process in one forward pass.
        accumulate: forward passes of each process before an update.
        lr: learning rate of AdamW after the warm-up.
        backbone_lr: learning rate of the backbone, as a multiple of ``lr``.
        weight_decay: of matrices and convolutions. Norms, biases and embeddings have none.
        warmup_lr: learning rate of the first update.
        warmup_updates: number of updates of linear warm-up.
        clip_grad: largest norm of the gradient; ``.inf`` for none.
        horizontal_flip: its probability.
        seed: of everything random.

    Raises:
        InputError: a number is out of its range.
    """

    model: str = ""
    model_options: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    epochs: int = 12
    batch_size: int = 2
    accumulate: int = 1
    lr: float = 1e-4
    backbone_lr: float = 1.0
    weight_decay: float = 1e-4
    warmup_lr: float = 1e-7
    warmup_updates: int = 500
    clip_grad: float = math.inf
    horizontal_flip: float = 0.5
    seed: int = 42

    def __post_init__(self) -> None:
        self.require("epochs batch_size accumulate", lambda value: value >= 1, "at least 1")
        self.require("lr clip_grad", lambda value: value > 0, "above 0")
        self.require(
            "backbone_lr weight_decay warmup_lr warmup_updates",
            lambda value: value >= 0,
            "0 or more",
        )
        self.require("horizontal_flip", lambda value: 0 <= value <= 1, "from 0 to 1")
        foreign = self.model_options.keys() & {"num_classes"}
        if foreign:
            raise InputError("model_options must not have num_classes: the images have the classes")

    def require(self, names: str, fits: Callable[[float], bool], expected: str) -> None:
        """Raises an InputError if one of the numbers with these names does not fit."""
        for name in names.split():
            if not fits(getattr(self, name)):
                raise InputError(f"{name} must be {expected}, got {getattr(self, name)}")
