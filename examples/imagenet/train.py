"""Trains a classifier on folders of images.

    python -m examples.imagenet.train --data PATH --config examples/imagenet/configs/soft_tiny.yaml

PATH holds train/ and val/, each with one folder for each class. Every line of the recipe can also
be an option, such as ``--epochs 100``. ``--model resnet18`` trains any model of timm. ``torchrun``
or ``accelerate launch`` uses several GPUs and machines. A run that was stopped continues from where
it was when the same command is given again.
"""

from pathlib import Path

from examples.imagenet.fit import fit
from examples.imagenet.images import open_folders
from examples.imagenet.recipe import Recipe
from examples.training.command import accelerated, options_of, training_parser
from examples.training.loop import Settings
from examples.training.screen import Screen


def main(arguments: list[str] | None = None) -> None:
    """Trains as the command line says, or prints what is wrong with it."""
    parser = training_parser("imagenet", (__doc__ or "").splitlines()[0], Recipe)
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="skip files that cannot be read"
    )
    options = parser.parse_args(arguments)
    with accelerated(options.precision, options.compile, options.accumulate) as accelerator:
        screen = Screen(accelerator.is_main_process, options.skip_unreadable)
        recipe = Recipe(**options_of(Recipe, options))
        options.out = options.out or Path("out/imagenet") / recipe.model
        settings = Settings(**options_of(Settings, options))
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


if __name__ == "__main__":
    main()
