"""Converts a checkpoint of the authors into one that ``examples.imagenet.checkpoint.load`` takes.

Run ``python -m examples.imagenet.convert in.pth out.safetensors``. The converted model computes
what the authors' does, their inverse included, until an option says otherwise.
"""

import argparse
import pickle
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from examples.imagenet import checkpoint, official
from examples.models.registry import MODELS

# The averaged weights are those that the authors evaluate.
PARTS = ("state_dict_ema", "state_dict", "model")


@dataclass(frozen=True)
class OfficialFile:
    """What a file of the authors' training script holds.

    state_dict: in their names.
    part: the entry of the file that it comes from, None where it is the file.
    model: the name of the model, None where the file does not tell.
    """

    state_dict: dict[str, Tensor]
    part: str | None
    model: str | None


def read(path: Path) -> OfficialFile:
    """Reads a checkpoint, running no code that it may hold.

    Raises:
        ValueError: the file holds no state_dict, or more than can be read so.
    """
    try:
        # Beside the weights lies their command line.
        with torch.serialization.safe_globals([argparse.Namespace]):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} cannot be read without running what it holds: {error}") from error
    entries = file if isinstance(file, dict) else {}
    part = next((part for part in PARTS if part in entries), None)
    state_dict = entries[part] if part else entries
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(
            f"{path} holds no state_dict: expected tensors by name, in the file itself or under "
            f"one of {', '.join(PARTS)}; got {', '.join(map(str, entries)) or type(file).__name__}"
        )
    # Data-parallel wrappers put "module." before every name.
    names = {name.removeprefix("module."): value for name, value in state_dict.items()}
    return OfficialFile(names, part, entries.get("arch") if part else None)


def convert(source: Path, target: Path, name: str | None = None) -> str:
    """Converts the file ``source`` into ``target`` and says what it was.

    Args:
        source: of the authors' training script.
        target: the file to write.
        name: of the model, where the file does not tell; shapes and names of a plain model and its
            normalised twin are the same.

    Raises:
        ValueError: ``source`` does not tell its model, or does not fit it.
    """
    file = read(source)
    name = name or file.model
    if name not in MODELS:
        raise ValueError(
            f"{source} does not tell which of the models it is of (it says {name!r}), and a plain "
            "model has the names and shapes of its normalised twin; give --model, one of "
            f"{', '.join(MODELS)}"
        )
    options = official.options(file.state_dict)
    model = timm.create_model(name, **options)
    weights = official.from_official(file.state_dict, model)
    checkpoint.save(target, checkpoint.Classifier(name, options), weights)
    return f"{target}: {name} {options}, from " + (
        f"{file.part!r} in {source}" if file.part else f"{source}"
    )


def main() -> None:
    """Converts, or says what does not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="what the authors' training script saved")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    parser.add_argument("--model", choices=MODELS, help="where the file does not tell it")
    arguments = parser.parse_args()
    try:
        print(convert(arguments.source, arguments.target, arguments.model))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
