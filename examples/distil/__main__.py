"""Swaps the attention of a pretrained text encoder and teaches it to answer as it did.

    python -m examples.distil MODEL TEXT [TEXT ...]

MODEL is a name or a folder of transformers' ``AutoModel``; each TEXT is a file of plain text, or a
folder of them. The same command continues a run that was stopped. Before and after, held-out text
tells how close the swapped encoder is to the original.
"""

import argparse
from pathlib import Path

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from examples.distil.costs import measure_costs, table_of_costs
from examples.distil.recipe import Recipe
from examples.distil.teach import table_of_agreement, teach
from examples.training.command import accelerated
from examples.training.loop import Settings
from examples.training.screen import Screen


def main(arguments: list[str] | None = None) -> None:
    """Teaches as the command line says, or prints what is wrong with it."""
    disable_progress_bar()  # of transformers, which would break ours
    options = vars(_parser().parse_args(arguments))
    model, paths, lengths = (options.pop(name) for name in ("model", "text", "costs"))
    settings = Settings(out=options.pop("out"), save_minutes=options.pop("save_minutes"))
    with accelerated() as accelerator:
        screen = Screen(accelerator.is_main_process, skip_unreadable=False)
        recipe = Recipe(**options)
        before, after = teach(model, paths, recipe, settings, accelerator, screen)
        if accelerator.is_main_process:
            console = Console()
            console.print(table_of_agreement(before, after))
            if lengths:
                costs = measure_costs(model, recipe, lengths, accelerator.device, screen)
                console.print(table_of_costs(costs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.distil",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="name or folder of a pretrained encoder")
    parser.add_argument("text", nargs="+", type=Path, help="text files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("out/distil"), help="folder to write to")
    parser.add_argument("--landmarks", type=int, default=64, help="number of landmarks")
    parser.add_argument("--landmarks_from", choices=("queries", "keys"), default="queries")
    parser.add_argument("--normalization", choices=("softmax", "token"), default="softmax")
    parser.add_argument("--tokens", type=int, default=512, help="length of a window of text")
    parser.add_argument("--batch_size", type=int, default=8, help="windows in an update")
    parser.add_argument("--updates", type=int, default=100, help="updates between evaluations")
    parser.add_argument("--epochs", type=int, default=4, help="number of evaluations")
    parser.add_argument("--lr", type=float, default=2e-4, help="largest learning rate")
    parser.add_argument("--held_out", type=int, default=64, help="windows of held-out text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save_minutes", type=float, default=2.0, help="between two snapshots")
    parser.add_argument(
        "--costs",
        type=int,
        nargs="*",
        default=[512, 1024, 2048, 4096, 8192],
        help="numbers of tokens at which to measure time and memory; none with an empty list",
    )
    return parser


if __name__ == "__main__":
    main()
