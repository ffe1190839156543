"""What the commands that train or evaluate have in common."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from jsonargparse import ArgumentParser, Namespace

from examples.training.errors import Diverged, InputError
from examples.training.interruption import Interrupted
from examples.training.loop import Settings

# Of matrix products; "auto" is bf16 on a GPU that has it.
Precision = Literal["auto", "bf16", "fp16", "no"]


@contextmanager
def accelerated(
    precision: Precision = "auto", compile: bool = False, accumulate: int = 1
) -> Iterator[Accelerator]:
    """Yields an accelerator, and ends the program with a message after an error of the user.

    Args:
        precision: of matrix products.
        compile: whether to use ``torch.compile``.
        accumulate: number of batches in an update.
    """
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        precision = "bf16" if has_bf16 else "no"
    accelerator = Accelerator(
        # Without this, several processes on CPUs do not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision,
        gradient_accumulation_steps=accumulate,
        dynamo_backend="inductor" if compile else "no",
    )
    try:
        yield accelerator
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_status)
    except (InputError, Diverged) as error:
        sys.exit(f"error: {error}")
    finally:
        accelerator.end_training()


def training_parser(room: str, description: str, recipe: type) -> ArgumentParser:
    """The options of a command that trains.

    Args:
        room: of the examples, such as "imagenet".
        description: what the command does.
        recipe: a dataclass; each of its fields is an option.
    """
    parser = ArgumentParser(prog=f"python -m examples.{room}.train", description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--config", action="config", help="a recipe, as in configs/")
    parser.add_argument(
        "--precision",
        type=Precision,
        default="auto",
        help="of matrix products; auto is bf16 on a GPU that has it",
    )
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_class_arguments(Settings, skip={"out"})
    parser.add_argument(
        "--out", type=Path | None, help=f"folder to write to; out/{room}/MODEL by default"
    )
    parser.add_class_arguments(recipe)
    return parser


def options_of(kind: type, options: Namespace) -> dict[str, Any]:
    """The options that are fields of a dataclass."""
    return {field.name: options[field.name] for field in fields(kind)}
