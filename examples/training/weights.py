"""The weights of a model in a safetensors file that says which model they belong to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.training.atomic import replacing
from examples.training.errors import InputError


def save(
    path: Path, kind: str, description: dict[str, Any], state_dict: Mapping[str, Tensor]
) -> None:
    """Writes a ``state_dict``, whole or not at all.

    Args:
        path: of the file.
        kind: of the model, such as "classifier".
        description: of the model, as JSON can hold it.
        state_dict: of the model.
    """
    weights = {name: value.contiguous() for name, value in state_dict.items()}
    with replacing(path) as partial:
        save_file(weights, partial, metadata={kind: json.dumps(description)})


def describe(path: Path, kind: str) -> dict[str, Any] | None:
    """The description in a file of ``save``; None if it holds no model of this kind.

    Raises:
        InputError: the file is not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(kind)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    return None if text is None else json.loads(text)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file.

    Raises:
        InputError: the file is not a safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
