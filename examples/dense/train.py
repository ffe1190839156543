"""The command that trains or evaluates a detector or segmenter."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from jsonargparse import Namespace

from examples.dense import checkpoint, samples
from examples.dense.evaluate import evaluate
from examples.dense.fit import fit
from examples.dense.problem import Problem
from examples.training.command import accelerated, options_of, training_parser
from examples.training.errors import InputError
from examples.training.loading import Share
from examples.training.loop import Settings
from examples.training.screen import Screen


def main(problem: Problem[Any], description: str, arguments: list[str] | None = None) -> None:
    """Trains or evaluates as the command line says, or prints what is wrong with it."""
    parser = training_parser(problem.room, description, problem.recipe)
    parser.add_argument(
        "--skip_broken", action="store_true", help="skip and count images that cannot be used"
    )
    parser.add_argument("--eval", action="store_true", help="evaluate --checkpoint, do not train")
    parser.add_argument("--checkpoint", type=Path | None, help="safetensors file of a training")
    options = parser.parse_args(arguments)
    with accelerated(options.precision, options.compile, options.accumulate) as accelerator:
        screen = Screen(accelerator.is_main_process, options.skip_broken, "--skip_broken")
        command = _evaluate if options.eval else _train
        command(problem, options, accelerator, screen)


def _train(
    problem: Problem[Any], options: Namespace, accelerator: Accelerator, screen: Screen
) -> None:
    recipe = problem.recipe(**options_of(problem.recipe, options))
    options.out = options.out or Path("out") / problem.room / recipe.model
    settings = Settings(**options_of(Settings, options))
    data = problem.open(options.data, recipe.model, screen)
    if screen.unreadable:
        screen.print(f"{screen.unreadable} broken images or objects are skipped")
    processes = accelerator.num_processes
    screen.print(
        f"{recipe.model} on {len(data.train)} images of {len(data.classes)} classes in "
        f"{options.data}, {processes} × {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}, {recipe.batch_size} × {recipe.accumulate} × {processes} "
        "images an update"
    )
    best = fit(problem, recipe, data, settings, accelerator, screen)
    screen.print(
        f"best: epoch {best['epoch']}, {problem.score} {best[problem.score]:.2%}. Weights, "
        f"metrics, curves and pictures are in {settings.out}"
    )


def _evaluate(
    problem: Problem[Any], options: Namespace, accelerator: Accelerator, screen: Screen
) -> None:
    if options.checkpoint is None:
        raise InputError("--eval needs --checkpoint FILE")
    described, model = checkpoint.load(options.checkpoint, problem)
    data = problem.open(options.data, described.name, screen)
    if data.classes != described.classes:
        differing = sorted(set(data.classes) ^ set(described.classes))
        raise InputError(
            f"{options.checkpoint} and {options.data} must have the same classes in the same order"
            + (f"; only one of them has {', '.join(differing)}" if differing else "")
        )
    share = Share.of(accelerator, options.workers)
    picture = (options.out or options.checkpoint.parent) / "evaluation.png"
    scores: dict[str, Any] = evaluate(
        problem,
        model.to(accelerator.device),
        samples.evaluation_batches(data.val, share),
        data.classes,
        described.preparation,
        picture,
        accelerator,
        screen,
    )
    screen.print(
        f"{options.checkpoint}, {described.name}, {len(data.val)} images: "
        + ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    )
