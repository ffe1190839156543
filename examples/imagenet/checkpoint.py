"""The weights of a classifier in a safetensors file that names its model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from examples.training import weights
from examples.training.errors import InputError

_KIND = "classifier"


@dataclass(frozen=True)
class Classifier:
    """The model that the weights in a file belong to.

    name: of the timm model.
    options: of ``timm.create_model``, including ``num_classes``.
    preparation: of images, in the form of timm's ``resolve_model_data_config``; empty for the
        default of the model.
    classes: names of the classes by label, if they are known.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None


def save(path: Path, classifier: Classifier, state_dict: Mapping[str, Tensor]) -> None:
    """Writes the ``state_dict`` of a classifier, whole or not at all."""
    weights.save(path, _KIND, asdict(classifier), state_dict)


def describe(path: Path) -> Classifier:
    """The model that the weights in a file of ``save`` belong to.

    Raises:
        InputError: the file does not name a model, or is not a safetensors file.
    """
    description = weights.describe(path, _KIND)
    if description is None:
        raise InputError(
            f"{path} does not name its model; examples.imagenet.convert and "
            "examples.imagenet.train write files that name it"
        )
    return Classifier(**description)


def load(path: Path, **options: Any) -> nn.Module:
    """The model of a file of ``save``, with its weights.

    Args:
        path: of the file.
        options: of ``timm.create_model``, such as ``pinv="minimax"``; they override those in the
            file.

    Raises:
        InputError: the file does not name a model, or is not a safetensors file.
    """
    classifier = describe(path)
    model = timm.create_model(classifier.name, **{**classifier.options, **options})
    model.load_state_dict(weights.read(path))
    return model
