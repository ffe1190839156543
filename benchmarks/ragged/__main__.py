"""A layer over sequences of different lengths: packed without padding, padded, and one by one.

All three run one SoftmaxFreeAttention with 49 landmarks a sequence on the same tokens. Waste is
the number of tokens of the padded batch over the number without padding. Times are for the whole
batch. Ctrl-C keeps the finished batches.
"""

import argparse
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common.arguments import (
    DTYPES,
    add_timing_options,
    common_parser,
    parse,
    positive_int,
)
from benchmarks.common.calls import MODES, Call
from benchmarks.common.progress import counted_steps
from benchmarks.common.quantities import seconds_text
from benchmarks.common.report import Report, new_table
from benchmarks.common.timing import Timing, time_calls
from softattn import SoftmaxFreeAttention

WAYS = ("packed", "padded", "one by one")


@dataclass(frozen=True)
class Cell:
    """Times of one batch in one mode, by way."""

    batch: str
    lengths: list[int]
    mode: str
    timings: dict[str, Timing]

    @property
    def waste(self) -> float:
        """Tokens of the padded batch over tokens without padding."""
        return len(self.lengths) * max(self.lengths) / sum(self.lengths)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    args = parse(_parser(), argv)
    report = Report.of("ragged", args, argv)
    cells: list[Cell] = []
    drawn = batches(args.sequences, args.longest)
    total = len(drawn) * len(MODES) * len(WAYS)
    with counted_steps(report.console, "ragged", total) as steps:
        for name, lengths in drawn.items():
            calls = calls_of(lengths, args)
            for mode in MODES:
                steps.describe(f"{name}, {mode}")
                timings = time_calls(
                    calls,
                    mode,
                    args.device,
                    rounds=args.rounds,
                    seconds=args.seconds_per_cell,
                    done=steps.advance,
                )
                cells.append(Cell(name, lengths, mode, timings))
    if not cells:
        report.console.print("interrupted before the first batch was finished; wrote nothing")
        return
    results = {"cells": [asdict(cell) | {"waste": cell.waste} for cell in cells]}
    report.finish([_table(cells)], results, interrupted=steps.interrupted)


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


def calls_of(lengths: list[int], args: argparse.Namespace) -> dict[str, Call]:
    """The ways to run the layer over one batch."""
    options = {"device": args.device, "dtype": DTYPES[args.dtype]}
    layer = SoftmaxFreeAttention(args.embed_dim, args.heads, **options)
    tokens = torch.randn(sum(lengths), args.embed_dim, **options)
    padded = pad_sequence(list(tokens.split(lengths)), batch_first=True).requires_grad_()
    tokens.requires_grad_()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    padding = padding.to(args.device)
    parameters = tuple(layer.parameters())

    def one_by_one() -> Tensor:
        return torch.cat([layer(sequence[None])[0] for sequence in tokens.split(lengths)])

    return {
        "packed": Call(lambda: layer(tokens, cu_seqlens=cu_seqlens), (tokens, *parameters)),
        "padded": Call(lambda: layer(padded, key_padding_mask=padding), (padded, *parameters)),
        "one by one": Call(one_by_one, (tokens, *parameters)),
    }


def _table(cells: list[Cell]) -> Table:
    headings = ("lengths", "mode", "tokens", "waste", *WAYS)
    table = new_table("a batch of sequences of different lengths", *headings, left=2)
    for cell in cells:
        times = (seconds_text(cell.timings[way].median) for way in WAYS)
        table.add_row(cell.batch, cell.mode, f"{sum(cell.lengths):,}", f"{cell.waste:.1f}", *times)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, dtypes=("float32", "float64", "bfloat16"))
    parser.add_argument("--sequences", type=positive_int, default=32, help="in a batch")
    parser.add_argument("--longest", type=positive_int, default=4096, help="tokens of a sequence")
    parser.add_argument("--embed-dim", type=positive_int, default=128, help="of a token")
    parser.add_argument("--heads", type=positive_int, default=4, help="of the layer")
    add_timing_options(parser, rounds=5, seconds=5.0)
    return parser


if __name__ == "__main__":
    main()
