"""A classifier's weights in one safetensors file, which says what model they are of."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from examples.imagenet.atomic import replacing
from examples.imagenet.errors import InputError

_KEY = "classifier"


@dataclass(frozen=True)
class Classifier:
    """What the weights in a file are of.

    name: of the timm model.
    options: of ``timm.create_model``, ``num_classes`` among them.
    preparation: of images, as timm's ``resolve_model_data_config`` has it; empty for the model's.
    classes: names of the classes by label, where they are known.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None


def save(path: Path, classifier: Classifier, state_dict: Mapping[str, Tensor]) -> None:
    """Writes the ``state_dict`` of a classifier, whole or not at all."""
    weights = {name: value.contiguous() for name, value in state_dict.items()}
    with replacing(path) as partial:
        save_file(weights, partial, metadata={_KEY: json.dumps(asdict(classifier))})


def describe(path: Path) -> Classifier:
    """What the weights in a file of ``save`` are of.

    Raises:
        InputError: the file does not say, or is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    if text is None:
        raise InputError(
            f"{path} does not say what model it is of; examples.imagenet.convert and "
            "examples.imagenet.train write files that do"
        )
    return Classifier(**json.loads(text))


def load(path: Path, **options: Any) -> nn.Module:
    """The model that a file of ``save`` is of, with its weights.

    Args:
        path: of the file.
        options: of ``timm.create_model``, such as ``pinv="minimax"``, before those in the file.

    Raises:
        InputError: the file does not say what model it is of.
    """
    classifier = describe(path)
    model = timm.create_model(classifier.name, **{**classifier.options, **options})
    model.load_state_dict(load_file(path))
    return model
