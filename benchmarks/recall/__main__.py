"""Associative recall: how often one layer of attention finds the value of a key.

A sequence holds random key–value pairs and queries for half of them, shuffled. A network of one
attention layer is trained for --steps, and the table shows the share of queries of new sequences
that get their value, by attention and by number of pairs. A guess is right in 1 of 64.

The task follows multi-query associative recall of Zoology (Arora et al., 2023). There a key and its
value are two tokens of a vocabulary, in a causal sequence, and two layers are trained. Here a pair
is one token, keys are random vectors that never come twice, tokens are in random order and attend
in both directions, and there is one layer. What is measured is the attention alone: finding the
token that equals the query among all others.

All attentions but nystrom-attention share one projection of queries and keys. All runs take the
same number of steps, on about --batch-tokens tokens each. The JSON file is written after each run.
--resume keeps the runs that it holds. Ctrl-C keeps what is finished.
"""

import argparse
import json
from dataclasses import asdict, fields
from importlib.util import find_spec

from benchmarks.common.arguments import common_parser, parse, positive_float, positive_int
from benchmarks.common.progress import counted_steps
from benchmarks.common.report import Report
from benchmarks.recall.attentions import ATTENTIONS
from benchmarks.recall.figure import recall_panels
from benchmarks.recall.tables import recall_table
from benchmarks.recall.training import Recipe, Run, train

_STEPS_OF_BAR = 50


def main(argv: list[str] | None = None) -> None:
    """Trains, prints the table, and writes the JSON file and the figure."""
    parser = _parser()
    args = parse(parser, argv)
    report = Report.of("recall", args, argv)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    runs = _earlier_runs(report, recipe, parser) if args.resume else []
    known = {run.key for run in runs}
    missing = [
        (attention, pairs, args.seed + seed)
        for seed in range(args.seeds)
        for pairs in args.pairs
        for attention in args.attentions
        if (attention, pairs, args.seed + seed) not in known
    ]
    with counted_steps(report.console, "recall", len(missing)) as steps:
        for attention, pairs, seed in missing:
            name = f"{ATTENTIONS[attention].label}, {pairs} pairs, seed {seed}"

            def done(step: int, name: str = name) -> None:
                if step % _STEPS_OF_BAR == 0:
                    steps.describe(f"{name}, step {step:,}")

            runs.append(train(attention, pairs, seed, recipe, done))
            report.write(_results(recipe, runs), interrupted=True)
            steps.advance()
    if not runs:
        report.console.print("interrupted before the first run was finished; wrote nothing")
        return
    report.finish(
        [recall_table(runs, recipe)],
        _results(recipe, runs),
        interrupted=steps.interrupted,
        panels=recall_panels(runs),
    )


def _earlier_runs(report: Report, recipe: Recipe, parser: argparse.ArgumentParser) -> list[Run]:
    """The runs of the JSON file, if it is there."""
    if not report.measurements.exists():
        return []
    content = json.loads(report.measurements.read_text(encoding="utf-8"))
    if content["recipe"] != asdict(recipe):
        parser.error(
            f"{report.measurements} holds runs of another recipe, {content['recipe']}; leave out "
            "--resume, or give the same options"
        )
    return [Run(**run) for run in content["runs"]]


def _results(recipe: Recipe, runs: list[Run]) -> dict[str, object]:
    return {"recipe": asdict(recipe), "runs": [asdict(run) for run in runs]}


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, ("float32",))
    installed = [
        name
        for name, attention in ATTENTIONS.items()
        if attention.package is None or find_spec(attention.package)
    ]
    add = parser.add_argument
    add("--attentions", nargs="+", choices=list(ATTENTIONS), default=installed, help="to train")
    add("--pairs", type=_even_int, nargs="+", default=[32, 64, 128, 256, 512], help="in a sequence")
    add("--seeds", type=positive_int, default=3, help="runs of each, from --seed on")
    add("--steps", type=positive_int, default=2000, help="of each training")
    add("--landmarks", type=positive_int, default=16, help="m")
    add("--batch-tokens", type=positive_int, default=3072, help="tokens of a step, about")
    add("--learning-rate", type=positive_float, default=3e-3, help="the largest of the cycle")
    add("--test-batches", type=positive_int, default=20, help="of new sequences")
    add("--resume", action="store_true", help="keep the runs of the JSON file in --out")
    return parser


def _even_int(text: str) -> int:
    value = positive_int(text)
    if value % 2:
        raise argparse.ArgumentTypeError(f"expected an even number of pairs, got {text}")
    return value


if __name__ == "__main__":
    main()
