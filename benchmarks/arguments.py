"""The options that all commands share."""

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
    """Keeps the lines of the description, and adds defaults but None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def common_parser(
    description: str,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    cuda_dtype: str | None = None,
) -> argparse.ArgumentParser:
    """A parser of --device, --dtype, --threads, --seed and --out.

    The default dtype is the first one. Given ``cuda_dtype`` it is that one on CUDA, and parsing
    leaves None where the command line has none.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    if cuda_dtype is None:
        parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="of the inputs")
    else:
        by_device = f"of the inputs (default: {dtypes[0]}, on CUDA {cuda_dtype})"
        parser.add_argument("--dtype", choices=dtypes, help=by_device)
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=torch.get_num_threads(),
        help="of PyTorch on the CPU",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="the folder for the JSON file and the figure"
    )
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses, and puts --threads and --seed into force."""
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, but PyTorch sees no CUDA device; use cpu")
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
