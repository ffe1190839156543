"""Trains a classifier on folders of images, or evaluates one.

To train::

    python -m examples.imagenet.train --data PATH --config examples/imagenet/configs/soft_tiny.yaml

PATH holds train/ and val/, each with one folder for each class. Every line of the recipe can be
given here too, such as ``--epochs 100``, and ``--model resnet18`` trains any model of timm. Under
``torchrun`` or ``accelerate launch`` the same uses several GPUs and machines. A run that was
stopped goes on where it was when it is started again. To evaluate::

    python -m examples.imagenet.train --data PATH --eval --checkpoint best.safetensors
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from jsonargparse import ArgumentParser, Namespace
from timm.data import resolve_model_data_config

from examples.imagenet import checkpoint, loading
from examples.imagenet.errors import InputError
from examples.imagenet.evaluation import Scores, evaluate
from examples.imagenet.fit import Interrupted, Settings, fit
from examples.imagenet.images import open_folders, open_split
from examples.imagenet.recipe import Recipe
from examples.imagenet.screen import Screen
from examples.imagenet.training import Diverged

Precision = Literal["auto", "bf16", "fp16", "no"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains or evaluates as the command line says, or says what is wrong."""
    options = _parser().parse_args(arguments)
    accelerator = _accelerator(options)
    screen = Screen(accelerator.is_main_process, options.skip_unreadable)
    try:
        if options.eval:
            _evaluate(options, accelerator, screen)
        else:
            _train(options, accelerator, screen)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_status)
    except (InputError, Diverged) as error:
        sys.exit(f"error: {error}")
    finally:
        accelerator.end_training()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m examples.imagenet.train", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--config", action="config", help="a recipe, as in configs/")
    parser.add_argument("--eval", action="store_true", help="evaluate --checkpoint on val/")
    parser.add_argument("--checkpoint", type=Path | None, help="a safetensors file to evaluate")
    parser.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="of matrix products; auto is bf16 on a GPU that has it",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="pass over files that cannot be read"
    )
    parser.add_class_arguments(Settings, skip={"out"})
    parser.add_argument(
        "--out", type=Path | None, help="folder to write to, out/imagenet/MODEL by default"
    )
    parser.add_class_arguments(Recipe)
    return parser


def _accelerator(options: Namespace) -> Accelerator:
    precision = options.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        precision = "bf16" if has_bf16 else "no"
    return Accelerator(
        # Unless it is told, several processes on CPUs do not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        gradient_accumulation_steps=options.accumulate,
        dynamo_backend="inductor" if options.compile else "no",
    )


def _train(options: Namespace, accelerator: Accelerator, screen: Screen) -> None:
    recipe = Recipe(**_of(Recipe, options))
    options.out = out = options.out or Path("out/imagenet") / recipe.model
    settings = Settings(**_of(Settings, options))
    folders = open_folders(options.data)
    screen.print(
        f"{recipe.model} on {len(folders.train)} images of {len(folders.classes)} classes in "
        f"{options.data}, {accelerator.num_processes} × {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}, {recipe.batch_size} × {recipe.accumulate} × "
        f"{accelerator.num_processes} images an update"
    )
    best = fit(recipe, folders, settings, accelerator, screen)
    screen.print(
        f"best: epoch {best.epoch}, top-1 {best.top1:.2%}. Weights, metrics and curves are in {out}"
    )


def _evaluate(options: Namespace, accelerator: Accelerator, screen: Screen) -> Scores:
    if options.checkpoint is None:
        raise InputError("--eval needs --checkpoint, a safetensors file")
    classifier = checkpoint.describe(options.checkpoint)
    model: Any = checkpoint.load(options.checkpoint).to(accelerator.device)
    preparation = classifier.preparation or resolve_model_data_config(model)
    folder = open_split(options.data, "val")
    _check_classes(folder.classes, classifier, model.num_classes)
    share = loading.Share(
        accelerator.process_index,
        accelerator.num_processes,
        options.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    batches = loading.evaluation_batches(folder, preparation, options.batch_size, share)
    with screen.bar("evaluation", len(batches), "batches") as bar:
        scores = evaluate(
            model,
            batches,
            model.num_classes,
            accelerator,
            note_unreadable=screen.note_unreadable,
            advance=bar.advance,
        )
    screen.print(
        f"{options.checkpoint}, {classifier.name}: top-1 {scores.top1:.2%}, top-5 "
        f"{scores.top5:.2%}, loss {scores.loss:.4f} on {scores.images} images"
        + (f" ({scores.unreadable} unreadable)" if scores.unreadable else "")
        + f", {scores.images_per_second:.0f} images a second"
    )
    return scores


def _check_classes(found: list[str], classifier: checkpoint.Classifier, num_classes: int) -> None:
    known = classifier.classes or found
    if found != known or len(found) != num_classes:
        raise InputError(
            f"the model knows {num_classes} classes and val/ has {len(found)}"
            + (
                f"; only one of them has {', '.join(sorted(set(found) ^ set(known)))}"
                if found != known
                else ""
            )
        )


def _of(kind: type, options: Namespace) -> dict[str, Any]:
    """Those of the command's options that are fields of a dataclass."""
    return {field.name: options[field.name] for field in fields(kind)}


if __name__ == "__main__":
    main()
