"""The options that commands share."""

import argparse
import math
from pathlib import Path

import torch

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds defaults other than None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def common_parser(
    description: str | None,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    cuda_dtype: str | None = None,
) -> argparse.ArgumentParser:
    """A parser of --device, --dtype, --threads, --seed and --out.

    The default dtype is the first one. With ``cuda_dtype`` the default on CUDA is that one, and
    parsing leaves None where --dtype is not given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    if cuda_dtype is None:
        add("--dtype", choices=dtypes, default=dtypes[0], help="of the inputs")
    else:
        by_device = f"of the inputs (default: {dtypes[0]}, on CUDA {cuda_dtype})"
        add("--dtype", choices=dtypes, help=by_device)
    threads = torch.get_num_threads()
    add("--threads", type=positive_int, default=threads, help="of PyTorch on the CPU")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--out", type=Path, default=Path("out"), help="folder for measurements/ and figures/")
    return parser


def add_timing_options(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """Adds --rounds and --seconds-per-cell with these defaults."""
    parser.add_argument(
        "--rounds", type=positive_int, default=rounds, help="how often the calls take turns"
    )
    parser.add_argument(
        "--seconds-per-cell",
        type=positive_float,
        default=seconds,
        help="for the warm-up and all rounds of one call",
    )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses, and applies --threads and --seed."""
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and PyTorch sees none; use cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


def positive_int(text: str) -> int:
    """An int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text}")
    return value
