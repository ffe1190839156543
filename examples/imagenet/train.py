"""Trains a classifier on folders of images.

    python -m examples.imagenet.train --data PATH --config examples/imagenet/configs/soft_tiny.yaml

PATH holds train/ and val/, each with one folder for each class. Every line of the recipe can also
be an option, such as ``--epochs 100``. ``--model resnet18`` trains any model of timm. ``torchrun``
or ``accelerate launch`` uses several GPUs and machines. A run that was stopped continues from where
it was when the same command is given again.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from examples.imagenet.fit import fit
from examples.imagenet.images import open_folders
from examples.imagenet.recipe import Recipe
from examples.training.command import Precision, accelerated
from examples.training.loop import Settings
from examples.training.screen import Screen


def main(arguments: list[str] | None = None) -> None:
    """Trains as the command line says, or prints what is wrong with it."""
    options = _parser().parse_args(arguments)
    with accelerated(options.precision, options.compile, options.accumulate) as accelerator:
        screen = Screen(accelerator.is_main_process, options.skip_unreadable)
        recipe = Recipe(**_of(Recipe, options))
        options.out = options.out or Path("out/imagenet") / recipe.model
        settings = Settings(**_of(Settings, options))
        folders = open_folders(options.data)
        processes = accelerator.num_processes
        screen.print(
            f"{recipe.model} on {len(folders.train)} images of {len(folders.classes)} classes in "
            f"{options.data}, {processes} × {accelerator.device.type}, precision "
            f"{accelerator.mixed_precision}, {recipe.batch_size} × {recipe.accumulate} × "
            f"{processes} images an update"
        )
        best = fit(recipe, folders, settings, accelerator, screen)
        screen.print(
            f"best: epoch {best['epoch']}, top-1 {best['top1']:.2%}. Weights, metrics and curves "
            f"are in {settings.out}"
        )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m examples.imagenet.train", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--config", action="config", help="a recipe, as in configs/")
    parser.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="of matrix products; auto is bf16 on a GPU that has it",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="skip files that cannot be read"
    )
    parser.add_class_arguments(Settings, skip={"out"})
    parser.add_argument(
        "--out", type=Path | None, help="folder to write to; out/imagenet/MODEL by default"
    )
    parser.add_class_arguments(Recipe)
    return parser


def _of(kind: type, options: Namespace) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    return {field.name: options[field.name] for field in fields(kind)}


if __name__ == "__main__":
    main()
