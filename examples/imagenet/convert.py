"""Converts a checkpoint of the authors to one that ``examples.imagenet.checkpoint.load`` reads.

Run ``python -m examples.imagenet.convert in.pth out.safetensors``. By default the
converted model computes what the authors' code computes, their inverse included.
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

# The authors evaluate the averaged weights, so these come first.
PARTS = ("state_dict_ema", "state_dict", "model")


@dataclass(frozen=True)
class OfficialFile:
    """The content of a file of the authors' training script.

    state_dict: with their names.
    part: the entry of the file that it comes from; None if it is the whole file.
    model: name of the model; None if the file does not contain it.
    """

    state_dict: dict[str, Tensor]
    part: str | None
    model: str | None


def read(path: Path) -> OfficialFile:
    """Reads a checkpoint without running code that it may contain.

    Raises:
        ValueError: the file has no state_dict, or cannot be read without running code.
    """
    try:
        # Their files also contain their command line.
        with torch.serialization.safe_globals([argparse.Namespace]):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} cannot be read without running its code: {error}") from error
    entries = file if isinstance(file, dict) else {}
    part = next((part for part in PARTS if part in entries), None)
    state_dict = entries[part] if part else entries
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(
            f"{path} contains no state_dict: expected tensors by name, in the file itself or under "
            f"one of {', '.join(PARTS)}; got {', '.join(map(str, entries)) or type(file).__name__}"
        )
    # Data-parallel wrappers put "module." before every name.
    names = {name.removeprefix("module."): value for name, value in state_dict.items()}
    return OfficialFile(names, part, entries.get("arch") if part else None)


def convert(source: Path, target: Path, name: str | None = None) -> str:
    """Converts the file ``source`` to ``target``; returns a message about it.

    Args:
        source: a file of the authors' training script.
        target: the file to write.
        name: of the model, if the file does not contain it. It cannot be inferred, because SOFT and
            SOFT-Norm models have parameters of the same names and shapes.

    Raises:
        ValueError: ``source`` does not name its model, or does not fit it.
    """
    file = read(source)
    name = name or file.model
    if name not in MODELS:
        raise ValueError(
            f"{source} does not name its model (found {name!r}), and SOFT and SOFT-Norm models "
            "have parameters of the same names and shapes; give --model, one of "
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
    """Converts, or prints what does not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a file of the authors' training script")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    parser.add_argument("--model", choices=MODELS, help="if the file does not name it")
    arguments = parser.parse_args()
    try:
        print(convert(arguments.source, arguments.target, arguments.model))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
