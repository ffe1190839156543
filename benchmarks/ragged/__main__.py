"""A layer over sequences of different lengths: packed without padding, padded, and one by one.

All three are one SoftmaxFreeAttention with 49 landmarks a sequence, on the same tokens. Waste is
the tokens of the padded batch over those that there are. Times are for the whole batch. Ctrl-C
keeps the finished batches.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.arguments import DTYPES, common_parser, parse, positive_float, positive_int
from benchmarks.progress import progress_bar, terminal, until_interrupted
from benchmarks.quantities import seconds_text
from benchmarks.report import start_report
from benchmarks.timing import Timing, time_in_turns, warm_up
from softattn import SoftmaxFreeAttention

WAYS = ("packed", "padded", "one by one")
MODES = ("forward", "forward and backward")


@dataclass(frozen=True)
class Cell:
    """Times of one batch in one mode, by way."""

    batch: str
    lengths: list[int]
    mode: str
    timings: dict[str, Timing]

    @property
    def waste(self) -> float:
        """Tokens of the padded batch over tokens that there are."""
        return len(self.lengths) * max(self.lengths) / sum(self.lengths)


def batches(sequences: int, longest: int) -> dict[str, list[int]]:
    """Lengths by the name of their distribution."""
    even = torch.linspace(0.5, 1, sequences).mul(longest).long()
    skewed = (torch.randn(sequences) + 5.7).exp().long().clamp(1, longest)
    return {
        "half to whole": even.tolist(),
        "all short": torch.randint(10, 101, (sequences,)).tolist(),
        "log-normal": skewed.tolist(),
        "one long": [longest] + [100] * (sequences - 1),
    }


def calls_of(
    lengths: list[int], mode: str, args: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """The ways to run the layer over one batch."""
    options = {"device": args.device, "dtype": DTYPES[args.dtype]}
    layer = SoftmaxFreeAttention(args.embed_dim, args.heads, **options)
    tokens = torch.randn(sum(lengths), args.embed_dim, **options).requires_grad_()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    with torch.no_grad():
        padded = pad_sequence(list(tokens.split(lengths)), batch_first=True)
    padded.requires_grad_()
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    padding = padding.to(args.device)

    def run(forward: Callable[[], Tensor], x: Tensor) -> Callable[[], object]:
        def call() -> object:
            if mode == "forward":
                with torch.no_grad():
                    return forward()
            return torch.autograd.grad(forward().sum(), (x, *layer.parameters()))

        return call

    def one_by_one() -> Tensor:
        return torch.cat([layer(sequence[None])[0] for sequence in tokens.split(lengths)])

    return {
        "packed": run(lambda: layer(tokens, cu_seqlens=cu_seqlens), tokens),
        "padded": run(lambda: layer(padded, key_padding_mask=padding), padded),
        "one by one": run(one_by_one, tokens),
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    args = parse(_parser(), argv)
    console = terminal()
    report = start_report("ragged", args, argv)
    cells: list[Cell] = []
    drawn = batches(args.sequences, args.longest)
    with until_interrupted() as interrupted, progress_bar(console) as progress:
        total = len(drawn) * len(MODES) * len(WAYS)
        task = progress.add_task("", total=total, stage="ragged")
        for name, lengths in drawn.items():
            for mode in MODES:
                progress.update(task, description=f"{name}, {mode}")
                calls = calls_of(lengths, mode, args)
                timings = time_in_turns(
                    {way: warm_up(call, args.device) for way, call in calls.items()},
                    rounds=args.rounds,
                    seconds=args.seconds_per_cell,
                    done=lambda _: progress.advance(task),
                )
                cells.append(Cell(name, lengths, mode, timings))
    console.print(_table(cells))
    results = {"cells": [asdict(cell) | {"waste": cell.waste} for cell in cells]}
    path = report.write_json(results, interrupted=interrupted.is_set())
    report.announce(console, [path])


def _table(cells: list[Cell]) -> Table:
    table = Table(title="a batch of sequences of different lengths", title_justify="left")
    table.add_column("lengths")
    for heading in ("tokens", "waste", "mode", *WAYS):
        table.add_column(heading, justify="right")
    for cell in cells:
        table.add_row(
            cell.batch,
            f"{sum(cell.lengths):,}",
            f"{cell.waste:.1f}",
            cell.mode,
            *(seconds_text(cell.timings[way].median) for way in WAYS),
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, dtypes=("float32", "float64", "bfloat16"))
    parser.add_argument("--sequences", type=positive_int, default=32, help="in a batch")
    parser.add_argument("--longest", type=positive_int, default=4096, help="tokens of a sequence")
    parser.add_argument("--embed-dim", type=positive_int, default=128, help="of a token")
    parser.add_argument("--heads", type=positive_int, default=4, help="of the layer")
    parser.add_argument("--rounds", type=positive_int, default=5, help="how often they take turns")
    parser.add_argument(
        "--seconds-per-cell", type=positive_float, default=5.0, help="for all rounds of one way"
    )
    return parser


if __name__ == "__main__":
    main()
