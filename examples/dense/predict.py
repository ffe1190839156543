"""The command that draws what a trained model finds in any picture."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torchvision.transforms.v2 import functional as F

from examples.dense import checkpoint, pictures
from examples.dense.evaluate import on
from examples.dense.problem import Problem
from examples.dense.samples import read_image
from examples.training.command import accelerated


def predict_parser(room: str, description: str) -> ArgumentParser:
    """The options of the command; a room may add its own."""
    parser = ArgumentParser(prog=f"python -m examples.{room}.predict", description=description)
    parser.add_argument("images", type=Path, nargs="+", help="pictures of any size")
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of a training")
    parser.add_argument(
        "--out", type=Path | None, help="folder to write to; predictions/ beside the weights"
    )
    return parser


def predict(problem: Problem[Any], images: list[Path], weights: Path, out: Path | None) -> None:
    """Writes each picture again, with what a model finds in it.

    Args:
        problem: of the model.
        images: to read.
        weights: safetensors file of a training.
        out: folder to write to; by default ``predictions`` beside the weights.
    """
    with accelerated() as accelerator, torch.inference_mode():
        described, model = checkpoint.load(weights, problem)
        model.eval().to(accelerator.device)
        for path in images:
            image = read_image(path)
            scaled = F.to_dtype(image, torch.float32, scale=True).to(accelerator.device)
            with accelerator.autocast():
                found = problem.predict(model, scaled, described.preparation)
            drawn = problem.draw(image, on(found, "cpu"), described.classes)
            target = (out or weights.parent / "predictions") / f"{path.stem}.png"
            pictures.write(target, drawn)
            print(target)
