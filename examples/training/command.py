"""What the commands that train or evaluate have in common."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import Accelerator

from examples.training.errors import Diverged, InputError
from examples.training.interruption import Interrupted

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
