"""Cross-attention beside the exact attention, as the spread of the tokens grows.

Two studies:

- "spread": queries and keys of the same spread, for each of --spreads. They are independent
  normal tokens, or those of two photographs under one projection or one each;
- "latents": --latents normal queries over --latent-keys keys, as in a Perceiver: queries of spread
  1 over the tokens of a photograph and over independent ones, and of spread 0.02 over a photograph.

Landmarks are cell means, of the keys, or half of them of the keys and half of the queries. Exact
outputs are computed in float64. Ctrl-C keeps what is finished.
"""

import argparse
from dataclasses import asdict

from benchmarks.common.arguments import (
    DTYPES,
    common_parser,
    parse,
    positive_float,
    positive_int,
)
from benchmarks.common.progress import counted_steps
from benchmarks.common.report import Report
from benchmarks.cross_attention.figure import norm_panels
from benchmarks.cross_attention.inputs import Case, inputs_of
from benchmarks.cross_attention.measurements import Outcome, outcomes_of
from benchmarks.cross_attention.tables import case_tables, summary_table

_SPREAD_SOURCES = ("independent", "photographs", "two projections")
_LATENTS = (("latents", 1.0), ("independent", 1.0), ("latents", 0.02))


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables, and writes the JSON file and the figures."""
    args = parse(_parser(), argv)
    report = Report.of("cross_attention", args, argv)
    studies = _studies(args)
    found: dict[str, list[Outcome]] = {name: [] for name in studies}
    total = sum(map(len, studies.values()))
    with counted_steps(report.console, "cross-attention", total) as steps:
        for name, cases in studies.items():
            for case in cases:
                steps.describe(f"{name}: {case.source}, spread {case.query_spread:g}")
                inputs = inputs_of(case, args.head_dim, args.landmarks, args.seed)
                found[name] += outcomes_of(case, inputs, DTYPES[args.dtype], args.device)
                steps.advance()
    if not found["spread"]:
        report.console.print("interrupted before the first case was measured; wrote nothing")
        return
    panels = norm_panels(found["spread"])
    report.finish(
        [
            *(table for outcomes in found.values() for table in case_tables(outcomes)),
            summary_table([outcome for outcomes in found.values() for outcome in outcomes]),
        ],
        {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in found.items()},
        interrupted=steps.interrupted,
        panels=panels,
        together=list(panels),
    )


def _studies(args: argparse.Namespace) -> dict[str, list[Case]]:
    """The cases of each study."""
    return {
        "spread": [
            Case(source, args.queries, args.keys, spread, spread)
            for source in _SPREAD_SOURCES
            for spread in sorted(args.spreads)
        ],
        "latents": [
            Case(source, args.latents, args.latent_keys, spread, 1.0) for source, spread in _LATENTS
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(__doc__, ("float32", "float64"))
    add = parser.add_argument
    add("--head-dim", type=positive_int, default=64, help="features of a token")
    add("--landmarks", type=positive_int, default=49, help="the number m")
    add("--queries", type=positive_int, default=1000, help='of the study "spread"')
    add("--keys", type=positive_int, default=4000, help='of the study "spread"')
    add("--latents", type=positive_int, default=64, help='the queries of the study "latents"')
    add("--latent-keys", type=positive_int, default=50000, help='the keys of the study "latents"')
    spreads = [0.5, 1.0, 1.5, 2.0, 3.0]
    add("--spreads", type=positive_float, nargs="+", default=spreads, help="of the tokens")
    return parser


if __name__ == "__main__":
    main()
