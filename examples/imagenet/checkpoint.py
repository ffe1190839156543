"""A classifier's weights in one safetensors file, which says what model they are of."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from examples.imagenet.model import SoftmaxFreeTransformer
from examples.imagenet.registry import MODELS

# The stage, from 0, and the block of a parameter's name.
BLOCK = r"stages\.([0-3])\.blocks\.(\d+)\."
_NAME = "model"


def save(path: Path, name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Writes the ``state_dict`` of ``timm.create_model(name)``, of whatever depths and classes."""
    save_file(dict(state_dict), path, metadata={_NAME: name})


def load(path: Path, **options: Any) -> SoftmaxFreeTransformer:
    """The model that a file of ``save`` is of, with its weights.

    Depths and the number of classes are those of the file.

    Args:
        path: of the file.
        options: of ``SoftmaxFreeTransformer``, such as ``pinv="minimax"``; without any it computes
            what the published model does.

    Raises:
        ValueError: the file does not say what model it is of.
    """
    with safe_open(path, "pt") as file:
        name = (file.metadata() or {}).get(_NAME)
        state_dict = {key: file.get_tensor(key) for key in file.keys()}
    if name not in MODELS:
        raise ValueError(
            f"{path} says that it is of the model {name!r}, expected one of {', '.join(MODELS)}; "
            "examples.imagenet.convert writes such files"
        )
    num_classes = len(state_dict.get("head.bias", ()))
    model = timm.create_model(name, depths=depths(state_dict), num_classes=num_classes, **options)
    assert isinstance(model, SoftmaxFreeTransformer)
    model.load_state_dict(state_dict)
    return model


def depths(names: Iterable[str], block: str = BLOCK) -> tuple[int, ...] | None:
    """How many blocks each stage has, None where not all four have any.

    Args:
        names: of parameters.
        block: a regular expression for their beginning, whose groups are the stage and the block.
    """
    blocks = {match.groups() for name in names if (match := re.match(block, name))}
    counts = Counter(stage for stage, _ in blocks)
    return tuple(counts[stage] for stage in sorted(counts)) if len(counts) == 4 else None
